"The explorers in a real JupyterLab and on a page without a kernel, in headless Chromium; skipped, with the reason, where there is none"
import contextlib, html, json, os, re, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest
from snnbook.book.lang import CJK
from snnbook.book.notebook import cell, find_root, notebook, write_nb

ROOT = find_root(Path(__file__).parent)
CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')) if p), None)
FLAGS = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-dev-shm-usage '
         '--disable-background-networking --disable-component-update --disable-sync').split()
WAIT = 90_000 # milliseconds; generous, for a busy machine

playwright = pytest.importorskip('playwright.sync_api', reason='needs the package playwright')
if not CHROMIUM: pytest.skip('needs Chromium, for example Debian\'s package chromium', allow_module_level=True)

SETUP = '''import torch, warnings
torch.manual_seed(0); torch.set_num_threads(1); warnings.filterwarnings('ignore')
from torch import nn
from snnbook.ann2snn import Converter
from snnbook.data import digits, digits_loaders
from snnbook.demo import digit_net
from snnbook import widgets
loader, test, ann = digits_loaders()[0], digits(), digit_net().eval()'''
SHOWN = { # name: how it is made, and the slider that is moved
    'threshold': ("widgets.threshold_explorer(Converter(loader), ann, test.x_test[:20], test.y_test[:20], steps=(1, 4))", 'percent'),
    'neuron': ("widgets.neuron_explorer()", 'strength'),
    'surrogate': ("widgets.surrogate_explorer()", 'alpha'),
    'conversion': ("widgets.conversion_explorer(Converter(loader)(ann), test.x_test[:3], ann, T=16)", 't'),
    'stdp': ("widgets.stdp_explorer()", 't_post')}

@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A JupyterLab of its own: folder, address, log"
    pytest.importorskip('jupyterlab', reason='needs the package jupyterlab')
    home, port = tmp_path_factory.mktemp('lab'), free_port()
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1', 'PYDEVD_DISABLE_FILE_VALIDATION': '1',
           **{k: str(home/'.j'/k) for k in ('JUPYTERLAB_SETTINGS_DIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'MPLCONFIGDIR')}}
    for k in ('SNNBOOK_LANG', 'SNNBOOK_STATIC'): env.pop(k, None)
    news = home/'.j/JUPYTERLAB_SETTINGS_DIR/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    news.parent.mkdir(parents=True); news.write_text('{"fetchNews": "false"}')  # no question about news over the notebook
    (home/'nb').mkdir(); log = open(home/'log', 'w')
    p = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0', "--IdentityProvider.token=",
        '--ServerApp.disable_check_xsrf=True', f"--ServerApp.root_dir={home/'nb'}", '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'],
        cwd=home, env=env, stdout=log, stderr=subprocess.STDOUT)
    url = f'http://127.0.0.1:{port}'
    try:
        until(lambda: api(url, 'api'), 'JupyterLab answers', lambda: (home/'log').read_text()[-2000:])
        yield home/'nb', url, home/'log'
    finally: p.terminate(); p.wait(20); log.close()

def api(url, path):
    try:
        with urllib.request.urlopen(f'{url}/{path}', timeout=5) as r: return json.load(r)
    except OSError: return None

def until(f, what, more=lambda: '', seconds=WAIT / 1000):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (r := f()): return r
        time.sleep(.1)
    raise AssertionError(f'in vain waited until {what}. {more()}')

def kernel_ready(url, path):
    return any(s['path'] == path and s['kernel']['execution_state'] == 'idle' and s['kernel']['connections'] > 0 for s in api(url, 'api/sessions') or [])

@contextlib.contextmanager
def page_of(browser, **kwargs):
    page, errors = browser.new_page(viewport=dict(width=1100, height=1600), **kwargs), []
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.on('console', lambda m: m.type == 'error' and errors.append(m.text))
    page.set_default_timeout(WAIT)
    yield page, errors
    page.close()

def same(page): # what stands on the page: the source of each picture and the words under it
    return page.evaluate("[...document.querySelectorAll('.widget-image')].map(i => i.src)"), page.locator('.widget-html').all_text_contents()

def photo(what, name): # to be looked at, where somebody asks for it
    if shots := os.environ.get('SNNBOOK_SHOTS'): what.screenshot(path=f'{shots}/{name}.png')

def moves(page, out, name, lang):
    "The labels are in the language, and a slider changes picture and words, by keys and by mouse"
    picture, text = out.locator('.widget-image').first, out.locator('.widget-html span[aria-live]').first
    out.scroll_into_view_if_needed(); picture.wait_for(); text.wait_for()
    labels = ''.join(out.locator('.widget-label').all_text_contents())
    assert bool(re.search(CJK, labels)) == (lang == 'zh'), (name, labels)
    handle = out.locator('.noUi-handle:visible').nth(slider_number(name, SHOWN[name][1]))
    for how in 'keys', 'mouse':
        old = picture.get_attribute('src'), text.text_content()
        if how == 'keys':
            handle.focus()
            for _ in range(2): page.keyboard.press('ArrowLeft')
        else:
            box = handle.bounding_box(); x, y = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
            page.mouse.move(x, y); page.mouse.down(); page.mouse.move(x - 40, y, steps=4); page.mouse.up()
        until(lambda old=old: picture.get_attribute('src') != old[0] and text.text_content() != old[1],
              f'{name}: picture and words change by {how}', lambda: text.text_content())

@pytest.mark.parametrize('lang', ['en', 'zh'])
def test_explorers_answer_to_keys_and_mouse(browser, lab, lang):
    home, url, log = lab
    cells = [cell(f"import os; os.environ['SNNBOOK_LANG'] = {lang!r}\n" + SETUP)]
    cells += [cell(f"{name} = {how}\n{name}") for name, (how, _) in SHOWN.items()]
    cells += [cell("print('all', 'done')")]
    write_nb(notebook(*cells), home/f'{lang}.ipynb')
    with page_of(browser) as (page, errors):
        page.goto(f'{url}/lab/tree/{lang}.ipynb?reset')
        page.wait_for_selector('.jp-NotebookPanel .jp-Cell')
        until(lambda: kernel_ready(url, f'{lang}.ipynb'), 'the kernel is idle')
        page.get_by_role('menuitem', name='Run', exact=True).click(); page.get_by_text('Run All Cells', exact=True).click()
        page.locator('.jp-OutputArea-output', has_text='all done').first.wait_for()
        outputs = page.locator('.jp-CodeCell')
        for k, name in enumerate(SHOWN, 1):
            moves(page, outputs.nth(k), name, lang)
            photo(outputs.nth(k), f'{lang}-{name}')
        assert not page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]').count()
        until(lambda: still(page), 'the page is at rest')
        check_numbers(page)
    assert not [e for e in errors if 'favicon' not in e and 'Failed to load resource' not in e], errors
    assert 'Traceback' not in log.read_text()

def slider_number(name, moved): # the position of a control among the sliders of an explorer
    from snnbook import widgets
    if name == 'threshold': kinds = ['percent', 'scale', 'T']
    elif name == 'conversion': kinds = ['t']
    else: kinds = [k for k, c in getattr(widgets, f'{name}_explorer')().controls.items() if c.kind.endswith('Slider')]
    return kinds.index(moved)

def still(page): # nothing has moved for a while
    a = same(page); page.wait_for_timeout(1000)
    return a == same(page)

def check_numbers(page):
    "What stands under each picture is what the model says for the values that the sliders show"
    page.locator('.jp-CodeCell').last.locator('.cm-content').click()
    page.keyboard.press('Control+A')
    names = ', '.join(SHOWN)
    page.keyboard.insert_text(f"import html; print('agrees', [all(html.escape(w) in n.value for w, n in zip(e.words(), e._notes)) for e in ({names})])")
    page.keyboard.press('Control+Enter')
    said = page.locator('.jp-OutputArea-output', has_text='agrees').first
    said.wait_for()
    assert said.text_content().strip() == f"agrees {[True] * len(SHOWN)}"

@pytest.fixture(scope='module')
def html_manager(tmp_path_factory):
    "The files of @jupyter-widgets/html-manager, from npm"
    if not (npm := shutil.which('npm')): pytest.skip('needs npm, to fetch @jupyter-widgets/html-manager')
    folder = tmp_path_factory.mktemp('npm')
    try: p = subprocess.run([npm, 'pack', '@jupyter-widgets/html-manager@1.0.14', '--silent'], cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired: pytest.skip('npm does not answer')
    if p.returncode: pytest.skip(f'npm could not fetch @jupyter-widgets/html-manager: {p.stderr[-200:]}')
    shutil.unpack_archive(next(folder.glob('*.tgz')), folder)
    return folder/'package'/'dist'

PAGE = '''<!doctype html><meta charset="utf-8"><script src="embed.js"></script>
<script type="application/vnd.jupyter.widget-state+json">{state}</script>{views}'''
VIEW = '<div id="{name}"><script type="application/vnd.jupyter.widget-view+json">{view}</script></div>'

def chooses(page, out, name, pull, stack):
    "The arrow keys walk through all frames, each with its own picture and words"
    picture = out.locator('.widget-image').first
    picture.wait_for(); out.scroll_into_view_if_needed()
    assert out.locator('.widget-label').first.text_content() == pull.description
    out.locator('.noUi-handle').first.focus(); page.keyboard.press('Home')
    seen = set()
    for k, frame in enumerate(stack.children):
        if k: page.keyboard.press('ArrowRight')
        want = html.unescape(frame.children[1].value)
        until(lambda want=want: words_of(out)[:1] == [want], f'{name}: frame {k}, {want}', lambda: str(words_of(out)), 30)
        seen.add(picture.get_attribute('src'))
    assert len(seen) == len(stack.children), name

@pytest.mark.parametrize('lang', ['en', 'zh'])
def test_static_pages_need_no_kernel_and_no_network(browser, html_manager, tmp_path, lang, monkeypatch):
    import torch
    from ipywidgets.embed import dependency_state
    from snnbook.widgets.explorer import LIMIT
    monkeypatch.setenv('SNNBOOK_LANG', lang); monkeypatch.setenv('TQDM_DISABLE', '1')
    torch.manual_seed(0); space = {}
    exec(SETUP, space)
    stills = {name: eval(how, space).static() for name, (how, _) in SHOWN.items()}
    for name, w in stills.items():
        assert len(json.dumps(dependency_state([w]))) < LIMIT, name
        assert 10 <= len(w.children[1].children) <= 20, name
    state = dict(version_major=2, version_minor=0, state=dependency_state([*stills.values()]))
    views = ''.join(VIEW.format(name=n, view=json.dumps(dict(version_major=2, version_minor=0, model_id=w.model_id))) for n, w in stills.items())
    shutil.copytree(html_manager, tmp_path, dirs_exist_ok=True)
    (tmp_path/'page.html').write_text(PAGE.format(state=json.dumps(state).replace('</', '<\\/'), views=views), encoding='utf-8')
    with page_of(browser) as (page, errors):
        asked = []
        page.route('**/*', lambda r: r.continue_() if r.request.url.startswith(('file:', 'data:', 'blob:')) else (asked.append(r.request.url), r.abort()))
        page.goto((tmp_path/'page.html').as_uri())
        for name, w in stills.items():
            chooses(page, page.locator(f'#{name}'), name, getattr(w.children[0], 'children', [w.children[0]])[0], w.children[1])
            photo(page.locator(f'#{name}'), f'static-{lang}-{name}')
        assert not asked, asked
    assert not errors, errors

def words_of(out): return [t.strip() for t in out.locator('.widget-html-content').all_text_contents()]
