"The explorers and their chapters in a real JupyterLab and Notebook 7, and on pages without a kernel, in headless Chromium; skipped, with the reason, where there is none"
import contextlib, html, json, os, re, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest
from snnbook.book.lang import CJK
from snnbook.book.notebook import cell, find_root, notebook, read_nb, write_nb

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
SHOWN = { # name: how it is made
    'threshold': "widgets.threshold_explorer(Converter(loader), ann, test.x_test[:20], test.y_test[:20], steps=(1, 4))",
    'neuron': "widgets.neuron_explorer()",
    'surrogate': "widgets.surrogate_explorer()",
    'conversion': "widgets.conversion_explorer(Converter(loader)(ann), test.x_test[:3], ann, T=16)",
    'stdp': "widgets.stdp_explorer()",
    'nir': "widgets.nir_explorer(ann_nir, dt=1e-3)"}
SETUP += '''
from snnbook.nir_exchange import export_to_nir
from snnbook import layer, neuron
deep = nn.Sequential(layer.Flatten(), *(m for k in range(5) for m in (layer.Linear(64, 64), neuron.LIFNode(4., v_threshold=.2))))
ann_nir = export_to_nir(deep, torch.zeros(1, 1, 8, 8), dt=1e-3)'''
CHAPTERS = sorted(p.stem for p in (ROOT/'nbs/widgets').glob('0[0-8]*.ipynb'))
QUIET = '''import fastcore.test as t
t.test_eq = t.test_close = t.test_fail = lambda *args, **kwargs: None  # they compare English words'''

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
    "One server for JupyterLab and Notebook 7: folder, address, log"
    for name in ('jupyterlab', 'notebook'): pytest.importorskip(name, reason=f'needs the package {name}')
    home, port = tmp_path_factory.mktemp('lab'), free_port()
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1', 'PYDEVD_DISABLE_FILE_VALIDATION': '1',
           **{k: str(home/'.j'/k) for k in ('JUPYTERLAB_SETTINGS_DIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'MPLCONFIGDIR')}}
    for k in ('SNNBOOK_LANG', 'SNNBOOK_STATIC'): env.pop(k, None)
    for plugin, setting in dict(apputils='notification', notebook='tracker').items():
        f = home/f'.j/JUPYTERLAB_SETTINGS_DIR/@jupyterlab/{plugin}-extension/{setting}.jupyterlab-settings'
        f.parent.mkdir(parents=True)  # no question about news over the notebook, and cells out of sight are on the page too
        f.write_text('{"fetchNews": "false"}' if plugin == 'apputils' else '{"windowingMode": "none"}')
    (home/'nb').mkdir(); log = open(home/'log', 'w')
    p = subprocess.Popen([sys.executable, '-m', 'notebook', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0', "--IdentityProvider.token=",
        '--ServerApp.disable_check_xsrf=True', f"--ServerApp.root_dir={home/'nb'}", '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'],
        cwd=home, env=env, stdout=log, stderr=subprocess.STDOUT)
    url = f'http://127.0.0.1:{port}'
    try:
        until(lambda: api(url, 'api'), 'the server answers', lambda: (home/'log').read_text()[-2000:])
        yield home/'nb', url, home/'log'
    finally: p.terminate(); p.wait(20); log.close()

def api(url, path, method='GET'):
    try:
        with urllib.request.urlopen(urllib.request.Request(f'{url}/{path}', method=method), timeout=20) as r: return json.loads(r.read() or 'null')
    except OSError: return None

def until(f, what, more=lambda: '', seconds=WAIT / 1000):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (r := f()): return r
        time.sleep(.1)
    raise AssertionError(f'in vain waited until {what}. {more()}')

PLACES = dict(jupyterlab='lab/tree', notebook='notebooks')

def first_cell(lang, more): return cell(f"import os; os.environ['SNNBOOK_LANG'] = {lang!r}\n" + more)

def kernel_ready(url, path):
    return any(s['path'] == path and s['kernel']['execution_state'] == 'idle' and s['kernel']['connections'] > 0 for s in api(url, 'api/sessions') or [])

@contextlib.contextmanager
def page_of(browser, **kwargs):
    page, errors = browser.new_page(viewport=dict(width=1100, height=1600), **kwargs), []
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.on('console', lambda m: m.type == 'error' and errors.append(m.text))
    page.set_default_timeout(WAIT)
    try: yield page, errors
    finally: page.close()

def seen(out): # what stands there: the source of each picture and the words under it
    return out.locator('.widget-image').evaluate_all('a => a.map(i => i.src)'), out.locator('.widget-html span[aria-live]').all_text_contents()

def photo(what, name): # to be looked at, where somebody asks for it
    if shots := os.environ.get('SNNBOOK_SHOTS'): what.screenshot(path=f'{shots}/{name}.png')

def run_all(page, lab, name, place, *cells):
    "Open a notebook in JupyterLab or Notebook 7, run it, and wait for its end"
    home, url, log = lab
    write_nb(notebook(*cells, cell("print('all', 'done')")), home/f'{name}.ipynb')
    for s in api(url, 'api/sessions') or []: api(url, f"api/sessions/{s['id']}", 'DELETE') # the kernel of the notebook before
    page.goto(f"{url}/{PLACES[place]}/{name}.ipynb?reset")
    page.wait_for_selector('.jp-NotebookPanel .jp-Cell')
    until(lambda: kernel_ready(url, f'{name}.ipynb'), 'the kernel is idle')
    page.get_by_role('menuitem', name='Run', exact=True).click(); page.get_by_text('Run All Cells', exact=True).click()
    error = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    done = page.locator('.jp-OutputArea-output', has_text='all done')
    until(lambda: done.count() or error.count(), f'{name} has run', lambda: log.read_text()[-2000:], 3 * WAIT / 1000)
    assert not error.count(), error.first.text_content()
    assert not page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count()

def moves(page, out, name, lang, brief=False):
    "The labels are in the language; sliders change picture and words by keys and by mouse; menus can be used by keys"
    out.scroll_into_view_if_needed(); out.locator('.widget-image').first.wait_for()
    labels = ''.join(out.locator('.widget-label').all_text_contents())
    assert bool(re.search(CJK, labels)) == (lang == 'zh') or not re.search('[A-Za-z]{3}', labels), (name, labels)
    out.locator('.widget-image').evaluate_all("a => a.forEach(i => { i.dataset.first = 'yes' })")
    changed = []
    for k in range(out.locator('.noUi-target').count()):
        target, handle = out.locator('.noUi-target').nth(k), out.locator('.noUi-handle').nth(k)
        if target.get_attribute('disabled') is not None: continue
        if brief and True in changed: break
        for how in ('keys',) if brief else ('keys', 'mouse'):
            low, now = (float(handle.get_attribute(f'aria-value{a}')) for a in ('min', 'now'))
            old, up = seen(out), now <= low + 1e-9
            if how == 'keys':
                handle.focus()
                keys = ('ArrowLeft', 'ArrowRight') if '/lab/' in page.url else ('PageDown', 'PageUp') # Notebook 7 keeps the arrows for itself
                for _ in range(2): page.keyboard.press(keys[up])
            else:
                box = handle.bounding_box(); x, y = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
                page.mouse.move(x, y); page.mouse.down(); page.mouse.move(x + (40 if up else -40), y, steps=4); page.mouse.up()
            end = time.monotonic() + 4 # a few moves change nothing, as a learning rate where the weight stays
            while time.monotonic() < end and seen(out) == old: page.wait_for_timeout(50)
            changed.append(seen(out) != old)
    assert any(changed) if brief else sum(changed) >= .7 * len(changed), (name, changed)
    for k in range(0 if brief else out.locator('select').count()):
        menu = out.locator('select').nth(k)
        at, of = menu.evaluate('s => [s.disabled ? 0 : s.selectedIndex, s.disabled ? 0 : s.options.length]')
        if of < 2: continue
        menu.focus() # Enter opens it: arrows alone belong to JupyterLab
        for key in 'Enter', 'ArrowDown' if at < of - 1 else 'ArrowUp', 'Enter': page.keyboard.press(key)
        assert menu.evaluate('s => s.selectedIndex') != at, f'{name}: menu {k}' # what it does to the picture is seen at the end, in `check_numbers`
    if not brief and (play := out.locator('.widget-play button')).count():
        out.locator('.noUi-handle').first.focus(); page.keyboard.press('Home'); first = seen(out)
        play.first.click(); until(lambda: seen(out) != first, f'{name} plays', seconds=30); second = seen(out)
        until(lambda: seen(out) != second, f'{name} plays on', seconds=30)
        play.first.click()
    until(lambda: still(page, out), 'the page is at rest')
    assert out.locator('.widget-image').evaluate_all("a => a.every(i => i.dataset.first == 'yes')"), f'{name}: a picture was not replaced in place'

def still(page, out): # nothing has moved for a while
    a = seen(out); page.wait_for_timeout(700)
    return a == seen(out)

def check_numbers(page, names):
    "What stands on the page is what the model says for the values that the controls show"
    menus = page.locator('.jp-OutputArea-output select').evaluate_all("a => a.map(s => s.selectedOptions[0].text.replaceAll('\\u00a0', ' '))")
    page.locator('.jp-CodeCell').last.locator('.cm-content').click()
    page.keyboard.press('Control+A')
    page.keyboard.insert_text(f'''import html
faults = []
for name, e in dict({', '.join(f'{n}={n}' for n in names)}).items():
    for k, (t, n, i) in enumerate(zip(e.words(), e._notes, e._images)):
        if html.escape(t) not in n.value: faults.append(f'{{name}} {{k}}: {{n.value}}, not {{t}}, for {{e.values}}')
        if i.value != e._shown(k, e.values)[0]: faults.append(f'{{name}} {{k}}: not the picture of {{e.values}}')
        if e._done[k] != [e.values[v] for v in e._needs[k]]: faults.append(f'{{name}} {{k}}: drawn for {{e._done[k]}}')
    for v, m in e.made.items():
        if m.value != e.values[v]: faults.append(f'{{name}}: {{v}} stands at {{m.value}}, not {{e.values[v]}}')
menus = [m.label for e in ({', '.join(names)},) for m in e.made.values() if m.__class__.__name__ == 'Dropdown']
print('agrees', menus, faults)''')
    page.keyboard.press('Control+Enter')
    said = page.locator('.jp-OutputArea-output', has_text='agrees').first
    said.wait_for()
    assert said.text_content().strip() == f'agrees {menus} []'

def no_faults(errors, lab):
    own = 'favicon', 'Failed to load resource', "(reading 'schema')", 'filebrowser:open-path' # the last two: Notebook 7 asks for what only JupyterLab has
    assert not [e for e in errors if not any(o in e for o in own)], errors
    assert 'Traceback' not in lab[2].read_text()

@pytest.mark.parametrize('place, lang', [('jupyterlab', 'en'), ('notebook', 'zh')])
def test_explorers_answer_to_keys_and_mouse(browser, lab, place, lang):
    with page_of(browser) as (page, errors):
        run_all(page, lab, f'{place}-{lang}', place, first_cell(lang, SETUP), *(cell(f"{name} = {how}\n{name}") for name, how in SHOWN.items()))
        for k, name in enumerate(SHOWN, 1):
            out = page.locator('.jp-CodeCell').nth(k)
            moves(page, out, name, lang)
            photo(out, f'{place}-{lang}-{name}')
        check_numbers(page, SHOWN)
    no_faults(errors, lab)

@pytest.mark.parametrize('chapter, lang', [(c, ('zh', 'en')[i % 2]) for i, c in enumerate(CHAPTERS)])
def test_chapters_run_and_their_explorers_answer(browser, lab, chapter, lang):
    "Each in one language; all explorers are moved in both, above"
    cells = [c for c in read_nb(ROOT/f'nbs/widgets/{chapter}.ipynb')['cells']]
    for c in cells:
        if c['cell_type'] == 'code': c['outputs'], c['execution_count'] = [], None
    name = re.findall(r'^(\w+)$', '\n'.join(c['source'].splitlines()[-1] for c in cells if c['cell_type'] == 'code' and c['source']), re.M)
    name = next(n for n in name if n in ('circle', 'explorer'))
    with page_of(browser) as (page, errors):
        run_all(page, lab, f'{lang}-{chapter}', 'jupyterlab', first_cell(lang, QUIET if lang == 'zh' else ''), *cells)
        out = page.locator('.jp-OutputArea-output:has(.widget-image)').first
        moves(page, out, chapter, lang, brief=True)
        photo(out, f'chapter-{lang}-{chapter}')
        check_numbers(page, [name])
    no_faults(errors, lab)

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

def written(folder, html_manager, widgets, **how): # a page of these widgets by name, as a front end without a kernel would get them; its address
    from ipywidgets.embed import dependency_state
    state = dict(version_major=2, version_minor=0, state=dependency_state([*widgets.values()], **how))
    views = ''.join(VIEW.format(name=n, view=json.dumps(dict(version_major=2, version_minor=0, model_id=w.model_id))) for n, w in widgets.items())
    shutil.copytree(html_manager, folder, dirs_exist_ok=True)
    (folder/'page.html').write_text(PAGE.format(state=json.dumps(state).replace('</', '<\\/'), views=views), encoding='utf-8')
    return (folder/'page.html').as_uri()

def chooses(page, out, name, pull, stack):
    "The arrow keys walk through all frames, each with its own picture and words"
    picture = out.locator('.widget-image').first
    picture.wait_for(); out.scroll_into_view_if_needed()
    assert out.locator('.widget-label').first.text_content() == pull.description
    out.locator('.noUi-handle').first.focus(); page.keyboard.press('Home')
    seen = set()
    for k, frame in enumerate(stack.children):
        if k: page.keyboard.press('ArrowRight')
        want = re.sub('<[^>]+>', '', html.unescape(frame.children[1].value)).strip()
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
    made = {name: eval(how, space) for name, how in SHOWN.items()}
    stills = {name: e.static() for name, e in made.items()}
    for name, w in stills.items():
        assert len(json.dumps(dependency_state([w]))) < LIMIT, name
        assert 10 <= len(w.children[1].children) <= 20, name
    address = written(tmp_path, html_manager, stills)
    with page_of(browser) as (page, errors):
        asked = offline(page)
        page.goto(address)
        for name, w in stills.items():
            chooses(page, page.locator(f'#{name}'), name, getattr(w.children[0], 'children', [w.children[0]])[0], w.children[1])
            photo(page.locator(f'#{name}'), f'static-{lang}-{name}')
        assert not asked, asked
    assert not errors, errors
    pieces = {name: e.html() for name, e in made.items()}  # the same without any widget
    (tmp_path/'plain.html').write_text('<!doctype html><meta charset="utf-8">' + ''.join(f'<div id="{n}">{t}</div>' for n, t in pieces.items()), encoding='utf-8')
    with page_of(browser) as (page, errors):
        asked = offline(page)
        page.goto((tmp_path/'plain.html').as_uri())
        for name, t in pieces.items():
            assert len(t.encode()) < LIMIT, name
            walk(page, page.locator(f'#{name}'), name, lang, len(stills[name].children[1].children))
            photo(page.locator(f'#{name}'), f'page-{lang}-{name}')
        assert not asked, asked
    assert not errors, errors

def offline(page): # all of the network is blocked, and noted
    asked = []
    page.route('**/*', lambda r: r.continue_() if r.request.url.startswith(('file:', 'data:', 'blob:')) else (asked.append(r.request.url), r.abort()))
    return asked

def walk(page, out, name, lang, frames):
    "The arrow keys walk through all frames of a piece of HTML, and the button, where there is one, plays them"
    pull = out.locator('input[type=range]'); out.scroll_into_view_if_needed()
    pull.focus(); page.keyboard.press('Home')
    frame = out.locator('[data-frame]:visible')
    shown = lambda: (frame.locator('img').first.get_attribute('src'), frame.first.text_content(), out.locator('output').text_content())
    found = [shown()]
    for _ in range(frames - 1): page.keyboard.press('ArrowRight'); found.append(shown())
    assert len({f[0] for f in found}) == len({f[2] for f in found}) == frames, name
    assert re.search(CJK, found[0][1]) if lang == 'zh' else not re.search(CJK, found[0][1]), found[0][1]
    assert pull.get_attribute('aria-valuetext') == found[-1][2]
    if (play := out.locator('button')).count():
        play.focus(); page.keyboard.press('Enter'); until(lambda: shown() != found[-1], f'{name} plays', seconds=10)
        page.keyboard.press('Enter'); assert play.get_attribute('aria-pressed') == 'false'

def test_live_explorers_are_drawn_by_other_front_ends(browser, html_manager, tmp_path, monkeypatch):
    "As VS Code draws them: plain widgets with nothing of JupyterLab around"
    monkeypatch.setenv('TQDM_DISABLE', '1'); space = {}
    exec(SETUP, space)
    made = {name: eval(how, space) for name, how in SHOWN.items()}
    address = written(tmp_path, html_manager, {name: e.widget for name, e in made.items()}, drop_defaults=False)
    with page_of(browser) as (page, errors):
        asked = offline(page)
        page.goto(address)
        for name, e in made.items():
            out, kinds = page.locator(f'#{name}'), [type(m).__name__ for m in e.made.values()]
            out.locator('.widget-image').last.wait_for()
            assert out.locator('.widget-image').count() == len(e.parts)
            want = {'.noUi-target': sum('Slider' in k for k in kinds), 'select': kinds.count('Dropdown'), 'input[type=text]': kinds.count('Text')}
            assert {css: out.locator(css).count() for css in want} == want, name
            values = [m.value for m in e.made.values() if type(m).__name__ in ('IntSlider', 'FloatSlider')]
            texts = [t for t, k in zip(out.locator('.widget-readout').all_text_contents(), [k for k in kinds if 'Slider' in k]) if k != 'SelectionSlider']
            assert all(abs(float(t) - v) <= .011 * max(1, abs(v)) for t, v in zip(texts, values, strict=True)), (name, texts, values)
            photo(out, f'live-{name}')
        assert not asked, asked
    assert not errors, errors

@pytest.mark.parametrize('lang', ['en', 'zh'])
def test_a_published_chapter_needs_no_network(browser, tmp_path, lang):
    "What the site puts on the page: HTML that Quarto hands on as it is"
    from snnbook.book.site import moving, with_sliders
    path = ROOT/'nbs/widgets/05_stdp.ipynb'
    nb = read_nb(path); body = json.loads(json.dumps(nb))
    for c in body['cells']: c['id'] += '-0' # as the localizer names the cells of a page
    body = with_sliders(body, moving(nb, path), lang)
    assert 'widgets' not in body['metadata']
    text = '<!doctype html><meta charset="utf-8">' + ''.join(''.join(o['data'].get('text/html', '')) for c in body['cells'] for o in c.get('outputs', []) if 'data' in o)
    (tmp_path/'page.html').write_text(text, encoding='utf-8')
    with page_of(browser) as (page, errors):
        asked = offline(page)
        page.goto((tmp_path/'page.html').as_uri())
        walk(page, page.locator('figure.snnbook-explorer'), 'stdp', lang, 13)
        assert not asked, asked
    assert not errors, errors

def words_of(out): return [t.strip() for t in out.locator('.widget-html-content').all_text_contents()]
