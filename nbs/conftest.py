"Each notebook is a test under its own name; how it is run is told in nbs/book/03_run.ipynb"
import pytest
from snnbook.base import SnnError
from snnbook.book.notebook import find_root, read_nb
from snnbook.book.run import CellError, execute, local_flags


def pytest_addoption(parser):
    parser.addoption('--flags', default='', help="also run cells marked with these flags, for example --flags 'slow gpu'")


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
