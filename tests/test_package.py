"What is packed, and what an import costs"
import email, json, os, re, subprocess, sys, tarfile, zipfile
from pathlib import Path
import pytest
from snnbook.book.notebook import find_root

ROOT = find_root(Path(__file__).parent)
HEAVY = 'numba', 'matplotlib', 'sklearn', 'ipywidgets', 'nir', 'h5py', 'tqdm', 'scipy', 'triton', 'pandas'

def python(*args, cwd='.'):
    p = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr[-3000:]
    return p

@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "An sdist of the tracked files, and a wheel made from that sdist, without a network"
    pytest.importorskip('build', reason='needs the package build')
    out, src = tmp_path_factory.mktemp('dist'), tmp_path_factory.mktemp('src')
    files = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if files.returncode: pytest.skip('needs a clone made by git')
    for name in filter(None, files.stdout.split('\0')):
        if (ROOT/name).is_file(): (src/name).parent.mkdir(parents=True, exist_ok=True); (src/name).write_bytes((ROOT/name).read_bytes())
    python('-m', 'build', '--sdist', '--no-isolation', '--outdir', str(out), str(src))
    with tarfile.open(next(out.glob('*.tar.gz'))) as t: t.extractall(out, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    unpacked = next(p for p in out.iterdir() if p.is_dir())
    python('-m', 'build', '--wheel', '--no-isolation', '--outdir', str(out), str(unpacked))
    return out

def test_the_wheel_holds_the_package_and_nothing_else(dist):
    names = zipfile.ZipFile(next(dist.glob('*.whl'))).namelist()
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT/'snnbook').rglob('*.py')}
    assert modules <= set(names)
    assert 'snnbook/py.typed' in names and any(re.search(r'dist-info/(licenses/)?LICENSE$', n) for n in names)
    assert {n.split('/')[0] for n in names} == {'snnbook', next(n.split('/')[0] for n in names if 'dist-info' in n)}
    assert not [n for n in names if re.search(r'tests?/|\.ipynb$|conftest', n)]

def test_the_sdist_can_be_built_from(dist):
    names = [n.partition('/')[2] for n in tarfile.open(next(dist.glob('*.tar.gz'))).getnames()]
    assert {'settings.ini', 'setup.py', 'README.md', 'LICENSE', 'snnbook/py.typed'} <= set(names)
    assert not [n for n in names if n.startswith('tests')]

def test_the_metadata_say_what_a_plain_install_needs(dist):
    z = zipfile.ZipFile(next(dist.glob('*.whl')))
    meta = email.message_from_bytes(z.read(next(n for n in z.namelist() if n.endswith('METADATA'))))
    from snnbook import __version__
    assert (meta['Name'], meta['Version'], meta['Requires-Python']) == ('snnbook', __version__, '>=3.11')
    needs = {re.match(r'[\w-]+', r)[0].lower() for r in meta.get_all('Requires-Dist') if 'extra ==' not in r}
    assert needs == {'torch', 'numpy', 'fastcore', 'numba', 'matplotlib', 'ipywidgets', 'nir', 'h5py', 'scikit-learn', 'tqdm'}
    assert set(meta.get_all('Provides-Extra')) == {'dev', 'interop', 'data', 'triton'}
    assert 'Apache' in (meta['License'] or '') + (meta['License-Expression'] or '')
    scripts = z.read(next(n for n in z.namelist() if n.endswith('entry_points.txt'))).decode()
    assert 'snnbook = snnbook.cli:main' in scripts.replace('=', ' = ').replace('  ', ' ')
    text = meta.get_payload()
    assert text.startswith('# snnbook') and meta['Description-Content-Type'] == 'text/markdown' and meta['Summary'] and meta['Keywords']
    assert not re.findall(r'\]\((?!https://|#)', text), 'a link of the description leads nowhere from a package index'
    assert {u.partition(',')[0] for u in meta.get_all('Project-URL')} >= {'Documentation', 'Source', 'Issues', 'Changelog'}
    assert {c.rpartition(' ')[2] for c in meta.get_all('Classifier') if re.search(r':: 3\.\d+$', c)} == {'3.11', '3.12', '3.13'}
    assert 'Typing :: Typed' in meta.get_all('Classifier') and meta.get_all('License-File') == ['LICENSE']

@pytest.fixture(scope='module')
def installed(dist, tmp_path_factory):
    "A fresh environment with the wheel in it; what the package needs is lent from here, the repository is not"
    pytest.importorskip('pip', reason='needs pip')
    env = tmp_path_factory.mktemp('env')/'venv'
    python('-m', 'venv', '--without-pip', str(env))
    exe = env/('Scripts' if sys.platform == 'win32' else 'bin')/'python'
    site = subprocess.run([exe, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], capture_output=True, text=True, check=True).stdout.strip()
    lent = [p for p in sys.path if p.endswith(('site-packages', 'dist-packages'))]
    Path(site, 'lent.pth').write_text('\n'.join(lent))    # a path file in a lent folder is not read, so an editable install does not come along
    python('-m', 'pip', '--python', str(exe), 'install', '-q', '--no-deps', '--no-index', '--ignore-installed', str(next(dist.glob('*.whl'))))
    def run(*args):
        keep = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')}
        return subprocess.run([exe.with_name(args[0]), *args[1:]], cwd=env.parent, env={**keep, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'}, capture_output=True, text=True)
    return env, run

def test_the_wheel_works_without_the_repository(installed):
    env, run = installed
    p = run('python', '-c', "import sys, snnbook; print(snnbook.__file__, 'torch' in sys.modules); import snnbook.neuron, snnbook.ann2snn, snnbook.nir_exchange, snnbook.widgets")
    assert p.returncode == 0, p.stderr
    assert Path(p.stdout.split()[0]).resolve().is_relative_to(env.resolve()) and p.stdout.split()[1] == 'False'
    p = run('snnbook', 'book', 'lint')
    assert p.returncode == 2 and 'inside a clone' in p.stderr and 'Traceback' not in p.stderr, p.stderr

def test_the_demo_runs_from_the_wheel(installed):
    env, run = installed
    p = run('snnbook', 'demo')
    assert p.returncode == 0, p.stderr[-2000:]
    assert [f.suffix for f in sorted((env.parent/'snnbook-demo').iterdir())], 'the demo leaves pictures and a report'

def import_time(statement): # seconds, by Python's own account
    lines = python('-X', 'importtime', '-c', statement, cwd=ROOT).stderr.splitlines()
    return sum(int(re.findall(r'\d+', l)[0]) for l in lines if l.startswith('import time:') and 'self [us]' not in l)/1e6

def test_importing_the_package_costs_little():
    extra = min(import_time('import torch, snnbook') - import_time('import torch') for _ in range(2))
    assert extra < .3, f'{extra:.2f} s more than torch alone'

def test_importing_the_package_does_not_import_torch():
    assert python('-c', "import sys, snnbook; print('torch' in sys.modules)", cwd=ROOT).stdout.split() == ['False']

def test_public_modules_import_nothing_heavy():
    code = f'''
import sys, json, pkgutil, importlib, torch
before = set(sys.modules)
import snnbook
names = [m.name for m in pkgutil.walk_packages(snnbook.__path__, 'snnbook.') if not m.name.split('.')[-1].startswith('_')]
engines = 'snnbook.kernels.numba', 'snnbook.kernels.words', 'snnbook.kernels.triton', 'snnbook.kernels.numba_cuda'   # imported by the first call that they serve
for n in names:
    if n not in engines: importlib.import_module(n)
print(json.dumps([names, sorted(({set(HEAVY)!r} & set(sys.modules)) - before)]))
'''
    names, heavy = json.loads(python('-c', code, cwd=ROOT).stdout.splitlines()[-1])
    assert 'snnbook.base' in names and 'snnbook.book.lint' in names
    assert heavy == []

def test_the_two_ways_to_start_are_the_same():
    module, front = python('-m', 'snnbook', '--help', cwd=ROOT).stdout, python('-c', 'import sys; from snnbook.cli import main; sys.exit(main(["--help"]))', cwd=ROOT).stdout
    assert module == front and 'demo' in module and 'book' in module

def test_a_wrong_command_is_one_clear_line():
    p = subprocess.run([sys.executable, '-m', 'snnbook', 'dmeo'], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 2 and "no command 'dmeo'" in p.stderr and 'Traceback' not in p.stderr
