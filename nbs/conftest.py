"Each notebook is a test under its own name; how it is run is told in nbs/book/03_run.ipynb"
import os
import pytest
from snnbook.base import SnnError
from snnbook.book.notebook import find_root, read_nb
from snnbook.book.run import CellError, execute, local_flags


def pytest_addoption(parser):
    parser.addoption('--flags', default='', help="also run cells marked with these flags, for example --flags 'slow gpu'")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    "When everything is asked for, files run side by side, up to four; what is named on the command line runs here and now"
    o = config.option
    alone = config.pluginmanager.hasplugin('xdist') and not hasattr(config, 'workerinput')     # a worker has none of its own
    if alone and config.args_source is pytest.Config.ArgsSource.TESTPATHS and o.numprocesses is None and not (o.usepdb or o.collectonly):
        o.numprocesses, o.dist = min(4, os.cpu_count() or 1), 'loadfile'
        os.environ.setdefault('OMP_NUM_THREADS', '1')                                           # workers with threads of their own would wait for each other


def pytest_collect_file(file_path, parent):
    if file_path.suffix == '.ipynb' and not any(p.startswith(('.', '_')) for p in file_path.relative_to(find_root(file_path.parent)).parts):
        return Notebook.from_parent(parent, path=file_path)


class Notebook(pytest.File):
    def collect(self): yield Chapter.from_parent(self, name=self.path.stem)


class Chapter(pytest.Item):
    def runtest(self):
        flags = [*local_flags(), *self.config.getoption('--flags', '').split()]
        try: execute(read_nb(self.path), self.path.relative_to(find_root(self.path.parent)).as_posix(), self.path.parent, flags)
        except CellError as e:
            if "No module named 'triton'" in str(e): pytest.skip('needs triton, which is for Linux only')
            raise

    def repr_failure(self, excinfo, style=None):
        return str(excinfo.value) if isinstance(excinfo.value, SnnError) else super().repr_failure(excinfo, style)

    def reportinfo(self): return self.path, None, self.name
