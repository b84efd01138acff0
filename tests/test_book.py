"The press with planted faults, and the real book. Each fault breaks exactly one rule; the clean twin breaks none."
import base64, configparser, copy, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest
from snnbook.book import check, command, lint, notation, notebook, papers, readme, run, site, sync
from snnbook.book.lang import localize_code
from snnbook.book.notebook import cell, find_root, read_nb, write_nb, write_text

ROOT = find_root(Path(__file__).parent)
TITLE = cell('# A | 甲\n\n> b | 乙', 'markdown')
def nb(*cells): return notebook.notebook(copy.deepcopy(TITLE), *cells)
def rules(book): return {e.rule for e in lint.lint_nb(book)}
def stream(text, name='stdout'): return [dict(output_type='stream', name=name, text=[text])]
PNG = base64.b64encode(b'\x89PNG\r\n\x1a\n').decode()
def drawn(): return [dict(output_type='display_data', metadata={}, data={'image/png': PNG})]

# --- a chapter in which every rule is met
GOOD_CODE = '''#| exports
class A(Base):
    "A thing | 一个东西"
    def __init__(self,
        x: int = 1, # its size | 大小
    ): self.x = x
    @property
    def size(self) -> int: # the size | 大小
        "Its size | 它的大小"
        return self.x
    @size.setter
    def size(self, value): self.x = value
    def _private(self, y): return y

@patch
def grow(self: A,
    by: int,          # how much | 多少
    *more: tuple[int, # and more | 还有
                 int],
    **opts: str,      # options | 选项
) -> int: # the new size | 新的大小
    "Let it grow | 让它变大"
    return self.x + by # the sum of both | 两者之和'''
GOOD_MD = '''The level $v$ of `x` is **high**:

$$v = 1$$

- one, [here](b.ipynb)
- two

| a | b |
|---|---|
| 1 | 2 |

<!-- zh -->

`x` 的水位 $v$ **很高**：

$$v = 1$$

- 一，见[这里](b.ipynb)
- 二

| 甲 | 乙 |
|---|---|
| 1 | 2 |'''

def good(): return nb(cell('#| default_exp a'), cell('#| exports\nimport math'), cell('## Part one | 第一部分', 'markdown'), cell(GOOD_MD, 'markdown'), cell(GOOD_CODE),
                      cell('plt.plot([1, 2]) # [T, N]', outputs=drawn()), cell('$$v$$', 'markdown'), cell('print(1)', outputs=stream('1\n')))

def test_a_good_chapter_has_no_faults(): assert lint.lint_nb(good()) == []

def swapped(old, new):
    book = good()
    assert any(old in c['source'] for c in book['cells'])
    for c in book['cells']: c['source'] = c['source'].replace(old, new, 1)
    return book

@pytest.mark.parametrize('rule, old, new', [
    ('two parts', '## Part one | 第一部分', '## Part one'),
    ('two parts', '## Part one | 第一部分', 'Only English words here'),
    ('two parts', '## Part one | 第一部分', '只有中文'),
    ('two parts', '## Part one | 第一部分', 'A prose pair outside | 标题之外的一对'),
    ('languages', GOOD_MD.partition('<!-- zh -->')[2], GOOD_MD.partition('<!-- zh -->')[0].replace('The level', '\n\nThe level', 1)),
    ('languages', 'is **high**:', 'is **high** 高:'),
    ('headings', '## Part one | 第一部分', '## Part\n\nWords.\n\n<!-- zh -->\n\n## 部分\n\n文字。'),
    ('alt text', '$$v$$', '![](a.png)'),
    ('markers', '\n\n<!-- zh -->\n\n`x`', '\n<!-- zh -->\n`x`'),
    ('markers', '- 二\n', '- 二\n\n<!-- zh -->\n'),
    ('markers', 'The level', '<!-- cn -->\n\nThe level'),
    ('same bones', 'The level $v$', 'The level'),
    ('same bones', 'of `x`', 'of x'),
    ('same bones', '\n- 二', ''),
    ('same bones', '见[这里](b.ipynb)', '见这里'),
    ('same bones', '| 甲 | 乙 |\n', ''),
    ('same bones', '- 二\n', '- 二\n\n```\n1\n```\n'),
    ('same bones', '- 二\n', '- 二\n\n![图](a.png)\n'),
    ('chinese typography', '- 二\n', '- 二\n\n一段文字\n分成两行\n'),
    ('chinese typography', '**很高**：', '**很高：**'),
    ('chinese typography', '一，见', '一, 见'),
    ('docstring', '"A thing | 一个东西"\n', '"A thing"\n'),
    ('docstring', '"Its size | 它的大小"', '"""Its\n\n        size | 大小"""'),
    ('docstring', '    "Let it grow | 让它变大"\n', ''),
    ('docments', '# its size | 大小', ''),
    ('docments', '# its size | 大小', '# size'),
    ('docments', '        return self.x\n', '        return self.x\n    def m(self, a: int, b: int): # both | 两个\n        "M | 方法"\n'),
    ('docments', '# the size | 大小', '# size'),
    ('docments', '-> int: # the new size | 新的大小', ': # the new size | 新的大小'),
    ('docments', '# and more | 还有', ''),
    ('docments', '**opts: str,      # options | 选项', '**opts: str,'),
    ('docments', 'by: int,          # how', 'by,          # how'),
    ('comment pairs', '# the sum of both | 两者之和', '# the sum of both'),
    ('comment pairs', '# the sum of both | 两者之和', '# 两者之和'),
    ('imports alone', '#| exports\nimport math', '#| exports\nimport math\n_x = 1'),
    ('imports alone', 'print(1)', 'def f():\n    import math'),
    ('shows source', '#| exports\nimport math', '#| export\n_x = 1'),
    ('values', '#| exports\nimport math', '#| exports\nx = 1'),
    ('values', '#| exports\nimport math', '#| exports\nx, (y, z) = 1, (2, 3) # three'),
    ('mathematics', '$$v$$', '$$v$'),
    ('mathematics', '$$v$$', '\\\\[v\\\\]'),
    ('figure words', 'print(1)', '#| fig-alt: "A curve"\nprint(1)'),
    ('manners', 'print(1)', '!pip list'),
    ('manners', 'print(1)', 'nbdev_export()'),
    ('no places', 'print(1)', 'print("' + '/ro' + 'ot/x")'),
    ('no places', 'print(1)', 'print("' + '/wo' + 'rk/x")'),
    ('no places', 'print(1)', 'print("--index-' + 'url")'),
    ('figure shows', 'print(1)', 'plot.raster(x)'),
    ('opening', '# A | 甲\n\n> b | 乙', '# A | 甲'),
    ('opening', '# A | 甲\n\n> b | 乙', '## A | 甲\n\n> b | 乙'),
    ('unique', '$$v$$', '## Part one | 第一部分'),
    ('screen', 'print(1)', '\n'.join(f'x{i} = {i}' for i in range(lint.SCREEN + 1))),
])
def test_each_fault_breaks_one_rule(rule, old, new): assert rules(swapped(old, new)) == {rule}

def edited(change):
    book = good(); change(book)
    return book

@pytest.mark.parametrize('rule, change', [
    ('clean nb', lambda b: b['metadata'].update(widgets={})),
    ('clean nb', lambda b: b['metadata'].update(language_info={})),
    ('clean nb', lambda b: b['cells'][-1].update(execution_count=3)),
    ('clean nb', lambda b: b['cells'][-1].update(metadata={'tags': ['x']})),
    ('clean nb', lambda b: b['cells'][-1].update(outputs=stream('1') + stream('\n'))),
    ('clean nb', lambda b: b.update(nbformat_minor=4)),
    ('manners', lambda b: b['cells'][-1].update(outputs=[dict(output_type='error', ename='E', evalue='', traceback=[])])),
    ('manners', lambda b: b['cells'][-1].update(outputs=stream('careful', 'stderr'))),
    ('no places', lambda b: b['cells'][-1].update(outputs=stream('saved to /tmp/xyz'))),
    ('no places', lambda b: b['cells'][-1].update(outputs=stream('<f at 0x' + '7f0011223344>'))),
    ('no places', lambda b: b['cells'][-1].update(outputs=stream('10/10 [00:01, 7.00it/s]'))),
    ('figure shows', lambda b: b['cells'][6].update(outputs=[])),
    ('unique', lambda b: b['cells'][-1].update(id=b['cells'][0]['id'])),
    ('breathing', lambda b: b['cells'].extend(cell(f'{i}') for i in range(lint.RUN))),
])
def test_each_fault_of_a_file_breaks_one_rule(rule, change): assert rules(edited(change)) == {rule}

def test_every_rule_has_a_planted_fault():
    marks = [m for f in (test_each_fault_breaks_one_rule, test_each_fault_of_a_file_breaks_one_rule) for m in f.pytestmark]
    assert {args[0] for m in marks for args in m.args[1]} == {r for kind in lint.RULES.values() for r in kind}

def test_two_chapters_may_not_write_one_module(tmp_path):
    shutil.copy(ROOT/'settings.ini', tmp_path)
    for name in '00_a', '01_b': write_nb(nb(cell('#| default_exp m')), tmp_path/'nbs'/f'{name}.ipynb')
    assert [e.rule for e in lint.lint(list((tmp_path/'nbs').glob('*.ipynb')))] == ['one home']

# --- running
def test_running_twice_gives_the_same_file(tmp_path):
    shutil.copy(ROOT/'settings.ini', tmp_path)
    src = "import matplotlib.pyplot as plt, matplotlib_inline.backend_inline as b\nb.set_matplotlib_formats('svg')"
    book, path = nb(cell(src), cell('plt.plot([1, 2]);'), cell('{"a", "b", "c"}'), cell('from tqdm import tqdm\nfor _ in tqdm(range(3)): print(_)')), tmp_path/'nbs'/'a.ipynb'
    write_nb(book, path)
    assert run.run(path) and not run.run(path)
    done = read_nb(path)
    assert 'image/svg+xml' in done['cells'][2]['outputs'][0]['data'] and '1970' in str(done['cells'][2]['outputs'])
    assert done['cells'][4]['outputs'] == [dict(output_type='stream', name='stdout', text=['0\n', '1\n', '2\n'])]

def test_clean_agrees_with_nbdev(tmp_path):
    clean = pytest.importorskip('nbdev.clean', reason='needs nbdev')
    for p in notebook.chapters(ROOT):
        q = tmp_path/p.name; write_nb(notebook.clean(read_nb(p)), q); before = q.read_bytes()
        clean.process_write('cannot clean', lambda b: clean.clean_nb(b, clean_ids=False), q)
        assert q.read_bytes() == before, p.name

CHAPTERS = {'good': nb(cell('x = 1'), cell('#| slow\n1/0'), cell('#| eval: false\n1/0'), cell('import os; assert os.path.basename(os.getcwd()) == "nbs"')),
            'bad': nb(cell('x = 1'), cell('y = 2\nassert x == 3, "x is not three"'))}

@pytest.fixture
def small_repo(tmp_path):
    shutil.copy(ROOT/'settings.ini', tmp_path)
    for name, book in CHAPTERS.items(): write_nb(book, tmp_path/'nbs'/f'{name}.ipynb')
    write_nb(CHAPTERS['bad'], tmp_path/'nbs'/'.ipynb_checkpoints'/'bad-checkpoint.ipynb')
    shutil.copy(ROOT/'nbs'/'conftest.py', tmp_path/'nbs')
    write_text('[pytest]\ntestpaths = nbs\n', tmp_path/'pytest.ini')
    return tmp_path

def test_a_notebook_is_a_test_under_its_own_name(small_repo):
    env = {**{k: v for k, v in os.environ.items() if k != 'CI'}, 'PYTHONPATH': str(ROOT)}
    def pytest_(*a): return subprocess.run([sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', *a], cwd=small_repo, env=env, capture_output=True, text=True)
    p = pytest_('-rA')
    assert p.returncode == 1 and '1 failed, 1 passed' in p.stdout, p.stdout + p.stderr
    for said in 'nbs/bad.ipynb, cell 2:', '2 | assert x == 3', 'x is not three', 'nbs/good.ipynb::good': assert said in p.stdout
    for noise in 'nbclient', 'checkpoint', '\x1b[': assert noise not in p.stdout
    assert pytest_('nbs/good.ipynb').returncode == 0
    p = pytest_('nbs/good.ipynb', '--flags', 'slow')
    assert p.returncode == 1 and 'ZeroDivisionError' in p.stdout, p.stdout + p.stderr

# --- the site, with planted faults
@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    text = 'The [level](#level) is $v$, see [first](index.ipynb).\n\n<!-- zh -->\n\n[水位](#level)是 $v$，见[第一页](index.ipynb)。'
    d = site.try_site(tmp_path_factory.mktemp('site'), cell('## Level | 水位', 'markdown'), cell(text, 'markdown'),
                      cell('#| exports\ndef f(): "F | 函"'), cell('#| exports\nA = 1 # one | 一'), cell('plt.plot([1])', outputs=drawn()), cell('x = 1 # one thing | 一件事'))
    write_text('d = {"syms": {"snnbook.a": {"snnbook.a.f": ("a.html#f", "snnbook/a.py"), "snnbook.a._hidden": ("a.html#_hidden", "snnbook/a.py")}}}\n', d/'snnbook'/'_modidx.py')
    write_text('A = 1\n', d/'snnbook'/'a.py')
    assert check.check_site(d) == []
    return d

@pytest.mark.parametrize('rule, file, old, new', [
    ('documented', 'snnbook/_modidx.py', 'snnbook.a.f', 'snnbook.a.g'),
    ('documented', 'snnbook/_modidx.py', 'a.html#f', 'b.html#f'),
    ('documented', 'zh/00_a.ipynb', '](#f){.api}', '](#f)'),
    ('documented', 'snnbook/a.py', 'A = 1', 'B = 1'),
    ('mathematics', 'zh/00_a.ipynb', '$v$', '$ v$'),
    ('mathematics', 'en/00_a.ipynb', '$v$', '$v'),
    ('pandoc', 'zh/00_a.ipynb', '$v$', '$\\\\frac{v$'),
    ('pandoc', 'en/00_a.ipynb', 'The [', '::: {.note}\\n\\nThe ['),
    ('fences', 'en/00_a.ipynb', 'The [', 'Here ::: The ['),
    ('valid', 'zh/00_a.ipynb', '"nbformat_minor": 5', '"nbformat_minor": 5, "surplus": 1'),
    ('valid', 'zh/00_a.ipynb', 'lang: zh\\n', ''),
    ('valid', 'zh/00_a.ipynb', 'lang: zh\\n', 'lang: en\\n'),
    ('one anchor', 'BOTH', ' is $v$, see|是 $v$，见', ' [x](#水)[]{#水}| [x](#水)[]{#水}'),
    ('one language', 'zh/00_a.ipynb', '[水位]', 'The level stands above the threshold now.\\n\\n[水位]'),
    ('one language', 'en/00_a.ipynb', 'The [', '水位 The ['),
    ('one language', 'en/00_a.ipynb', '[level]', '[水位]'),
    ('one language', 'en/00_a.ipynb', 'The [', '<!-- zh -->\\n\\nThe ['),
    ('one language', 'en/00_a.ipynb', '# one thing', '# one thing | 一件事'),
    ('one language', 'zh/00_a.ipynb', '导出的源码', 'Exported source'),
    ('images', 'zh/00_a.ipynb', '是 $v$', '![](no.png)'),
    ('images', 'en/00_a.ipynb', '"#| fig-alt: \\"Level\\"\\n",', ''),
    ('menus', '_quarto.yml', '    - zh/00_a.ipynb\n', '    - zh/00_a.ipynb\n    - zh/00_a.ipynb\n'),
    ('menus', '_quarto.yml', '    - zh/00_a.ipynb\n', '    - zh/00_a.ipynb\n    - zh/01_b.ipynb\n'),
    ('menus', '_quarto.yml', '    - zh/00_a.ipynb\n', '    - en/00_a.ipynb\n'),
    ('menus', '_quarto.yml', 'enabled: false', 'enabled: true'),
    ('menus', '_quarto.yml', 'type: website', 'type: book'),
    ('twins', 'zh/00_a.ipynb', '是 $v$', '[]{#more}'),
    ('links', 'zh/00_a.ipynb', '(index.ipynb)', '(gone.ipynb)'),
    ('links', 'zh/00_a.ipynb', '(#level)', '(#depth)'),
    ('links', 'zh/00_a.ipynb', '(index.ipynb)', '(../en/index.ipynb)'),
    ('links', 'zh/00_a.ipynb', 'href: ../en/a.html', 'href: ../en/b.html'),
    ('links', 'BOTH', 'output-file: a.html|output-file: a.html', 'output-file: index.html|output-file: index.html'),
])
def test_each_fault_of_the_site_is_found(sound, tmp_path, rule, file, old, new):
    d = shutil.copytree(sound, tmp_path/'site')
    olds, news, names = [old], [new], [file]
    if file == 'BOTH': olds, news, names = old.split('|'), new.split('|'), ['en/00_a.ipynb', 'zh/00_a.ipynb']
    for name, o, n in zip(names, olds, news):
        text = (d/name).read_text(encoding='utf-8')
        assert o in text, text
        write_text(text.replace(o, n), d/name)
    assert {e.rule for e in check.check_site(d)} - ({'documented'} if file == 'BOTH' else set()) == {rule}

def test_a_page_in_no_sidebar_is_found(sound, tmp_path):
    d = shutil.copytree(sound, tmp_path/'site')
    for lang in 'en', 'zh': shutil.copy(d/lang/'00_a.ipynb', d/lang/'09_new.ipynb')
    assert {(e.where, e.rule) for e in check.check_site(d) if 'sidebar' in e.message} == {('en/09_new.ipynb', 'menus'), ('zh/09_new.ipynb', 'menus')}

def test_a_page_in_one_language_only_is_found(sound, tmp_path):
    d = shutil.copytree(sound, tmp_path/'site'); (d/'zh'/'00_a.ipynb').unlink()
    assert {e.rule for e in check.check_site(d)} == {'menus', 'twins', 'links', 'documented'}

def test_every_page_rule_has_a_planted_fault():
    planted = {args[0] for m in test_each_fault_of_the_site_is_found.pytestmark for args in m.args[1]}
    assert planted == {*check.PAGE_RULES, 'menus', 'twins', 'links', 'documented'}

def test_the_front_page_leads_to_both_languages(tmp_path, monkeypatch):
    monkeypatch.delenv('QUARTO_PROJECT_OUTPUT_DIR', raising=False)
    (tmp_path/'_docs').mkdir()
    text = site.write_home(tmp_path).read_text(encoding='utf-8')
    assert 'href="en/index.html"' in text and 'href="zh/index.html"' in text and "startsWith('zh')" in text

def test_quarto_renders_the_site(tmp_path):
    if not (quarto := shutil.which('quarto')): pytest.skip('needs the program quarto')
    d = site.try_site(tmp_path, cell('## Hello | 你好', 'markdown'))
    write_text('', d/'nbs'/'styles.css')
    subprocess.run([quarto, 'render'], cwd=d, check=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (d/'_docs'/'zh'/'index.html').exists() and (d/'_docs'/'index.html').exists()
    assert [str(e) for e in check.check_rendered(d/'_docs', d)] == []

def test_building_twice_gives_the_same_bytes(tmp_path):
    def pages(): return {p.relative_to(tmp_path): p.read_bytes() for lang in ('en', 'zh') for p in (tmp_path/lang).rglob('*') if p.is_file()}
    cells = [cell('## Level | 水位', 'markdown'), *(cell(c['source']) for c in good()['cells'] if c['cell_type'] == 'code')]
    site.try_site(tmp_path, *cells); first = pages()
    for lang in 'en', 'zh', '_proc': shutil.rmtree(tmp_path/lang)
    site.build(tmp_path, force=True)
    assert first == pages() and len(first) == 4

def test_the_reference_tells_everything_about_a_name():
    source = localize_code(GOOD_CODE, 'en').replace('return self.x + by', "if by < 0: raise ValueError('by')\n    return self.x + by")
    source = source.replace('#| exports', '#| exports\n#| code-summary: "Exported source"')
    text = '\n\n'.join(c['source'] for c in site.reference([cell('See [Bi, 1998](reference/01_papers.ipynb#bi1998).', 'markdown'), {**cell(source), 'id': 'x'}], 'en'))
    for said in ('`A(x)`**](#a){.api} A thing', '- `x`: `int` = `1`, its size', '`A.size`**](#a.size)', '`A.grow(by, *more, **opts)`**](#a.grow)',
                 '- `by`: `int`, how much', '- `*more`: `tuple[int, int]`, and more', '- returns `int`, the new size',
                 'Errors: `ValueError`.', 'Papers: [Bi, 1998](reference/01_papers.ipynb#bi1998).'): assert said in text, f'{said}\n{text}'
    assert '_private' not in text

# --- symbols, words and papers, with planted faults
NOTATION = '''| symbol | |
|---|---|
| $v$, $v_{\\mathrm{reset}}$ | potential |
| `01_b` | $w$ a current |
| spike | `脉冲` | event |'''
CHAPTER = ('A *spike* is $v_t \\ge v_{\\mathrm{reset}}$ ([Bi and Poo, 1998](reference/01_papers.ipynb#bi1998)).\n\n<!-- zh -->\n\n'
           '*脉冲*是 $v_t \\ge v_{\\mathrm{reset}}$（[Bi 与 Poo，1998](reference/01_papers.ipynb#bi1998)）。')
BIB = '@article{bi1998, author={Bi, G. and Poo, M.}, year={1998}, title={Timing}, journal={Neuroscience 18}, doi={10.1523/J.18}}\n'

def small_book(folder, old='', new=''):
    shutil.copy(ROOT/'settings.ini', folder)
    change = lambda text: text.replace(old, new) if old else text
    write_nb(nb(cell(change(CHAPTER), 'markdown')), folder/'nbs'/'00_a.ipynb')
    write_nb(nb(cell('$w$', 'markdown')), folder/'nbs'/'01_b.ipynb')
    write_nb(nb(cell(change(NOTATION) + '\n\n<!-- zh -->\n\n' + change(NOTATION).replace('event', '事件'), 'markdown')), folder/notation.HOME)
    write_text(change(BIB), folder/'nbs'/'references.bib')
    papers.write_papers(folder)
    return {(e.rule, e.where.partition(':')[0]) for e in lint.lint(list(notebook.chapters(folder))) if e.rule in ('papers', 'symbols', 'words')}

A, B, N = 'nbs/00_a.ipynb', 'nbs/references.bib', notation.HOME
@pytest.mark.parametrize('found, old, new', [
    (set(), '', ''),
    ({('symbols', A), ('symbols', N)}, '$v_t', '$u_t'),
    ({('symbols', A), ('symbols', N)}, '$v_t', '$v_{\\mathrm{rest}}'),
    ({('symbols', 'nbs/01_b.ipynb'), ('symbols', N)}, '`01_b` | $w$', '`00_a` | $w$'),
    ({('symbols', N)}, '| $v$, ', '| $v$, $\\tau$, '),
    ({('words', A)}, '*脉冲*', '*尖峰*'),
    ({('words', A)}, 'A *spike* is', 'A *burst* is'),
    ({('papers', A), ('papers', B)}, '#bi1998', '#bi1989'),
    ({('papers', A)}, '[Bi and Poo, 1998]', '[They, long ago]'),
    ({('papers', A)}, ' ([Bi', ', as Bi and Poo (1998) say ([Bi'),
    ({('papers', A)}, ' ([Bi', ', as Poe et al. (1999) say ([Bi'),
    ({('papers', A)}, ' ([Bi', ' ([here](https://doi.org/10.1523/J.18), [Bi'),
    ({('papers', B)}, '@article{bi1998', '@misc{poe1999, author={Poe, E.}, year={1999}, title={T}, journal={J}, arxiv={9901.12345}}\n@article{bi1998'),
    ({('papers', B)}, '10.1523/J.18', 'doi:10.1523/J.18'),
    ({('papers', B)}, ' title={Timing},', ''),
])
def test_symbols_words_and_papers(tmp_path, found, old, new): assert small_book(tmp_path, old, new) == found

def test_a_bibliography_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(ValueError, match='not closed'): small_book(tmp_path, 'title={Timing}', 'title={Timing')
    with pytest.raises(ValueError, match='two entries'): small_book(tmp_path, BIB, BIB + BIB)

def test_a_page_of_papers_that_is_stale_is_found(tmp_path, monkeypatch):
    small_book(tmp_path)
    monkeypatch.setattr(sync, 'stale_modules', lambda root: [])
    write_nb(nb(), tmp_path/'nbs'/'index.ipynb')
    write_nb(nb(), tmp_path/'nbs'/papers.PAGE)
    assert f'nbs/{papers.PAGE}' in {e.where for e in sync.stale(tmp_path)}

def test_the_tables_of_the_readme_are_those_that_were_measured():
    index = read_nb(ROOT/'nbs'/'index.ipynb')
    assert readme.with_tables(index) == index and sum('text/markdown' in str(c.get('outputs')) for c in index['cells']) == 3

# --- the real book
def test_lint_finds_nothing(): assert [str(e) for e in lint.lint(list(notebook.chapters(ROOT)))] == []

def test_package_readme_and_sidebar_are_what_the_chapters_give(): assert [str(e) for e in sync.stale(ROOT)] == []

def test_the_site_check_finds_nothing():
    site.build(ROOT)
    assert [str(e) for e in check.check_site(ROOT)] == []

def test_links_in_the_readme_lead_somewhere():
    for name in readme.readmes(ROOT):
        text = (ROOT/name).read_text(encoding='utf-8')
        for link in re.findall(r'\]\((?!\w+:|#)([^)#\s]+)', text): assert (ROOT/name).parent.joinpath(link).exists(), f'{name}: {link}'
        for alt in re.findall(r'!\[(.*?)\]', text): assert alt.strip(), f'{name}: an image without alternative text'

def test_the_test_command_is_found_in_the_readme():
    p = subprocess.run([ROOT/'.ci'/'test-command'], capture_output=True, text=True)
    assert p.returncode == 0 and p.stdout.strip() in (ROOT/'README.md').read_text(encoding='utf-8').split('\n') and p.stdout.strip().endswith('pytest')

def test_flags_are_those_of_the_settings():
    settings = configparser.ConfigParser(delimiters=['=']); settings.read(ROOT/'settings.ini', encoding='utf-8')
    assert sorted(settings['DEFAULT']['tst_flags'].split()) == sorted(run.FLAGS)

def test_ruff_finds_nothing():
    p = subprocess.run([sys.executable, '-m', 'ruff', 'check', '.'], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout

def test_the_command_reports_by_exit_code(tmp_path, capsys):
    shutil.copy(ROOT/'settings.ini', tmp_path)
    write_nb(nb(cell('Only English words.', 'markdown')), tmp_path/'nbs'/'a.ipynb')
    assert command.main(['lint', str(tmp_path/'nbs'/'a.ipynb')]) == 1
    assert 'nbs/a.ipynb: cell 1' in capsys.readouterr().out
    write_nb(good(), tmp_path/'nbs'/'a.ipynb')
    assert command.main(['lint', str(tmp_path/'nbs'/'a.ipynb')]) == 0
