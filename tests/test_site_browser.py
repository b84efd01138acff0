"Pages of the book in headless Chromium: what axe-core says of them, and where the switch of languages leads; skipped, with the reason, where a browser is missing"
import re, shutil, subprocess, tarfile
from pathlib import Path
import pytest
from snnbook.book import check, site
from snnbook.book.lang import LANGS
from snnbook.book.notebook import find_root, write_text

ROOT = find_root(Path(__file__).parent)
AXE = 'axe-core@4.10.3'     # the version is fixed, so that a new rule does not break a build
CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')) if p), None)
FLAGS = '--headless --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage --disable-background-networking --disable-component-update --disable-sync'.split()
SHOWN = 'index', '00_base', '02_dynamics', 'layer/09_stdp', 'ann2snn/15_bench', 'nir_exchange/00_time', 'kernels/07_bench', 'widgets/02_neuron', 'tutorials/00_from_spikes', \
        'reference/00_notation', 'reference/01_papers', 'book/20_contributing'

playwright = pytest.importorskip('playwright.sync_api', reason='needs the package playwright')
if not CHROMIUM: pytest.skip('needs Chromium, for example Debian\'s package chromium', allow_module_level=True)

@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()

@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "Some pages of each part, rendered by pandoc, with their figures, the style sheet and the script of the site"
    folder, copy = tmp_path_factory.mktemp('pages'), tmp_path_factory.mktemp('copy')
    shutil.copy(ROOT/'settings.ini', copy)
    for s in SHOWN: (copy/'nbs'/s).parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT/'nbs'/f'{s}.ipynb', copy/'nbs'/f'{s}.ipynb')
    nbs = site.processed(copy)
    links = site.symbol_pages(ROOT, {site._output(name): name for name in nbs})
    for lang in LANGS:
        for name in nbs:
            nb = site.page(nbs[name], lang, name, links)
            other = LANGS[1 - LANGS.index(lang)]
            switch = f'[{other}]({"../"*len(Path(name).parts)}{other}/{name.removesuffix(".ipynb")}.html){{.switch}}\n\n'
            plain = re.sub(r'^```\w+', '```', check.markdown(nb, figures=True), flags=re.M)     # colours are Quarto's, so none of pandoc's
            text, warnings = check.html(switch + plain, nb['cells'][0]['source'].split('\n')[1])
            assert not warnings, f'{lang}/{name}: {warnings}'
            style = f'<style>{(ROOT/"nbs"/"styles.css").read_text(encoding="utf-8")}</style>'
            text = text.replace('<body>', '<body><main>').replace('</body>', f'</main>{site.SWITCH}</body>')
            write_text(text.replace('<html ', f'<html lang="{lang}" ').replace('</head>', style + '</head>'), folder/lang/f"{name.removesuffix('.ipynb')}.html")
    return folder

@pytest.fixture(scope='module')
def axe(tmp_path_factory):
    if not (npm := shutil.which('npm')): pytest.skip('needs npm, to get axe-core')
    d = tmp_path_factory.mktemp('axe')
    try: p = subprocess.run([npm, 'pack', AXE, '--silent'], cwd=d, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired: pytest.skip('npm does not answer')
    if p.returncode or not list(d.glob('*.tgz')): pytest.skip(f'npm has no {AXE} for us: {p.stderr.strip()[-200:]}')
    with tarfile.open(next(d.glob('*.tgz'))) as t: return t.extractfile('package/axe.min.js').read().decode()

def serious(page, axe):
    page.evaluate(axe)
    found = page.evaluate('''axe.run(document, {resultTypes: ['violations']})
        .then(r => r.violations.map(v => [v.impact, v.id, v.help, v.nodes.slice(0, 3).map(n => n.html.slice(0, 160))]))''')
    return [v for v in found if v[0] in ('serious', 'critical')]

@pytest.mark.parametrize('lang', LANGS)
def test_axe_finds_nothing_serious(browser, pages, axe, lang):
    page = browser.new_page(); found = {}
    for f in sorted((pages/lang).rglob('*.html')):
        page.goto(f.as_uri())
        if v := serious(page, axe): found[f.relative_to(pages).as_posix()] = v
    page.close()
    assert found == {}

def test_axe_finds_a_planted_fault(browser, axe, tmp_path):
    page = browser.new_page()
    page.set_content('<html lang="en"><title>x</title><main><img src="data:,"><a href="#x"></a><p style="color:#ddd;background:#fff">pale</p></main></html>')
    assert {'image-alt', 'link-name', 'color-contrast'} <= {v[1] for v in serious(page, axe)}
    page.close()

@pytest.mark.parametrize('here, there', [('en', 'zh'), ('zh', 'en')])
def test_the_switch_of_languages_lands_on_the_same_section(browser, pages, here, there):
    page = browser.new_page()
    page.goto((pages/here/'00_base.html').as_uri())
    sections = page.evaluate("[...document.querySelectorAll('main h2[id]')].map(x => x.id)")
    assert len(sections) > 3
    page.evaluate(f"document.getElementById('{sections[2]}').scrollIntoView()")
    tops = page.evaluate("[...document.querySelectorAll('main h2[id], main h3[id]')].map(x => [x.id, x.getBoundingClientRect().top])")
    near = [i for i, top in tops if -5 < top < 150]
    page.eval_on_selector('a.switch', 'a => a.click()')
    page.wait_for_url(re.compile(f'/{there}/00_base.html#'))
    landed = page.url.partition('#')[2]
    assert landed in near and page.evaluate('document.documentElement.lang') == there and page.evaluate(f"!!document.getElementById('{landed}')")
    page.close()
