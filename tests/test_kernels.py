"The compiled neurons against the plain loop, where a chapter would bore: types, layouts, threads, forks, caches"
import copy
import math
import os
import subprocess
import sys
import threading

import pytest
import torch
from snnbook import dynamics, neuron, surrogate
from snnbook.kernels import dispatch
from snnbook.kernels import numba as compiled
from snnbook.kernels import torch as plain

LIF = dict(charge=dynamics.lif_charge, params=(2., 0.), v_threshold=1., v_reset=0.)
SURROGATES = [surrogate.ATan, surrogate.Sigmoid, surrogate.PiecewiseExp, surrogate.Erf, surrogate.PiecewiseQuadratic, surrogate.SoftSign, surrogate.SuperSpike, surrogate.Rect]


def python(code, **env):
    "Run code in a new Python, return what it prints"
    root = os.path.dirname(os.path.dirname(dynamics.__file__))
    env = {**os.environ, 'PYTHONPATH': root + os.pathsep + os.environ.get('PYTHONPATH', ''), **env}
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=100)
    assert not out.returncode, out.stderr[-3000:]
    return out.stdout.split()


def train(node, x, weight):
    "Spikes, last potential, gradient of the input"
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    s = node(x)
    ((s * weight).sum() + node.v.square().sum()).backward()
    return s.detach(), node.v.detach(), x.grad


def pair(**kwargs):
    return [neuron.LIFNode(step_mode='m', backend=b, **kwargs) for b in ('numba', 'torch')]


@pytest.mark.parametrize('kind', SURROGATES)
def test_every_surrogate(kind):
    torch.manual_seed(0)
    x, w = torch.randn(9, 333) * 2, torch.randn(9, 333)
    for a, b in zip(*(train(n, x, w) for n in pair(tau=3.3, surrogate_function=kind()))): torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize('kwargs', [dict(v_reset=None), dict(detach_reset=True), dict(v_reset=None, detach_reset=True), dict(v_reset=-.5, decay_input=False)], ids=str)
def test_every_reset(kwargs):
    torch.manual_seed(0)
    x, w = torch.randn(9, 333) * 2, torch.randn(9, 333)
    ours, theirs = (train(n, x, w) for n in pair(surrogate_function=surrogate.ATan(), **kwargs))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2]) if kwargs.get('decay_input', True) else torch.allclose(ours[2], theirs[2], atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_single_precision_rounded_once(dtype):
    torch.manual_seed(0)
    x, w = (torch.randn(9, 500) * 2).to(dtype), torch.randn(9, 500).to(dtype)
    half, single = pair(surrogate_function=surrogate.ATan())
    ours, theirs = train(half, x, w), train(single, x.float(), w.float())
    assert ours[0].dtype == dtype and torch.equal(ours[0].float(), theirs[0])
    for a, b in zip(ours[1:], theirs[1:]): torch.testing.assert_close(a.float(), b.to(dtype).float(), rtol=2e-2, atol=1e-2)


def test_double_precision():
    x, w = torch.randn(9, 100, dtype=torch.float64), torch.randn(9, 100, dtype=torch.float64)
    for a, b in zip(*(train(n, x, w) for n in pair(tau=3.3, surrogate_function=surrogate.Erf()))): torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_layouts():
    torch.manual_seed(0)
    base = torch.randn(8, 2, 6, 5, 4)
    last = base.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (8, 2))
    views = dict(plain=base, channels_last=last, chunk=last[2:5], strided=base[..., ::2], time_last=base.permute(1, 2, 3, 4, 0).contiguous().movedim(-1, 0),
                 shown=base[:1].expand(8, -1, -1, -1, -1), one=base[:1])
    for name, x in views.items():
        for grad in (torch.ones(()).expand(x.shape), torch.randn(x.shape), torch.randn(x.shape[1:]).expand(x.shape)):
            out = []
            for node in pair(surrogate_function=surrogate.ATan()):
                leaf = x.detach().requires_grad_()
                s = node(leaf)
                out.append((s.detach(), torch.autograd.grad(s, leaf, grad)[0]))
            assert torch.equal(out[0][0], out[1][0]) and torch.equal(out[0][1], out[1][1]), name
    node = pair()[0]
    assert node(last).stride() == last.stride() and node.v.stride() == last.stride()[1:]


def test_sizes():
    for shape in ((1, 1), (1, 70_000), (5, 0), (3, 16_385), (70, 3), (4, 1, 1, 1)):
        x = torch.randn(shape)
        for a, b in zip(*(train(n, x, torch.ones(shape)) for n in pair(surrogate_function=surrogate.ATan()))): assert torch.equal(a, b)
    node = pair()[0]
    assert node(torch.zeros(0, 4)).shape == (0, 4)
    node.reset()
    with pytest.raises(ValueError): node(torch.tensor(1.))


def test_pieces_and_stored_potentials():
    torch.manual_seed(0)
    x = torch.randn(12, 40, requires_grad=True)
    for node in pair(surrogate_function=surrogate.ATan(), store_v_seq=True):
        s = torch.cat([node(x[:5]), node(x[5:6]), node(x[6:])])
        grads = torch.autograd.grad(s.sum() + (node.v_seq * torch.arange(6.)[:, None]).sum() + node.v.sum(), x)
        if node.backend == 'numba': first = s.detach(), node.v_seq.detach(), grads[0]
    assert torch.equal(first[0], s.detach()) and torch.equal(first[1], node.v_seq.detach())
    torch.testing.assert_close(first[2], grads[0], rtol=0, atol=1e-6)


def test_constants_that_are_tensors():
    torch.manual_seed(0)
    x, w = torch.randn(9, 2, 6, 4, 4) * 2, torch.randn(9, 2, 6, 4, 4)
    out = []
    for backend in 'numba', 'torch':
        torch.manual_seed(1)
        node = neuron.LIFNode(tau=torch.nn.Parameter(torch.rand(6, 1, 1) + 1.5), v_threshold=torch.nn.Parameter(torch.rand(6, 4, 4) + .5),
                              v_reset=torch.nn.Parameter(torch.tensor(-.1)), surrogate_function=surrogate.ATan(), step_mode='m', backend=backend)
        out.append([*train(node, x, w), *(p.grad for p in node.parameters())])
        assert node.backend_used == backend
    assert torch.equal(out[0][0], out[1][0])
    for a, b in zip(*out): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_parametric_lif_is_the_same_for_any_number_of_threads():
    torch.manual_seed(0)
    x, w = torch.randn(8, 200_000), torch.randn(8, 200_000)
    before, out = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            node = neuron.ParametricLIFNode(step_mode='m', backend='numba')
            out.append([*train(node, x, w), node.w.grad])
    finally: torch.set_num_threads(before)
    for other in out[1:]:
        for a, b in zip(out[0], other): assert torch.equal(a, b)


def test_many_callers_at_once():
    x, w = torch.randn(8, 150_000), torch.ones(8, 150_000)
    expected, wrong, before = train(pair()[1], x, w), [], torch.get_num_threads()
    torch.set_num_threads(2)
    def call():
        for _ in range(3):
            got = train(neuron.LIFNode(step_mode='m', backend='numba'), x, w)
            wrong.extend(not torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected))
    try:
        callers = [threading.Thread(target=call) for _ in range(4)]
        for c in callers: c.start()
        for c in callers: c.join()
    finally: torch.set_num_threads(before)
    assert len(wrong) == 36 and not any(wrong)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_forked_workers():
    code = '''
import torch
from snnbook import neuron
torch.set_num_threads(2)
x = torch.rand(8, 200_000) * 2
node = neuron.LIFNode(step_mode='m', backend='numba')
class Data(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i):
        node.reset(); torch.set_num_threads(2)          # our threads only: PyTorch's own do not survive a fork
        with torch.no_grad(): s = node(x)
        torch.set_num_threads(1)
        return s.sum()
total = node(x).sum()
print(all(torch.equal(b, total.expand(1)) for b in torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context='fork')))
node.reset(); print(torch.equal(node(x).sum(), total))
'''
    assert python(code) == ['True', 'True']


def test_a_changed_equation_is_never_served_from_the_cache(tmp_path):
    code = '''
import math, torch, types
from snnbook import dynamics
from snnbook.kernels import numba as compiled
from snnbook.surrogate import ATan
def leak(v, x): return v / SHARE + x
dynamics.slopes[leak] = dynamics._if_slopes
SHARE = {}
print(compiled.multi_step(torch.ones(2, 1), 0., leak, (), 9., 0., ATan())[1].item())
'''
    assert python(code.replace('{}', '2'), SNNBOOK_CACHE=str(tmp_path)) == ['1.5']
    assert python(code.replace('{}', '4'), SNNBOOK_CACHE=str(tmp_path)) == ['1.25']
    made = len(list(tmp_path.glob('*.py')))
    assert made == 2 and python(code.replace('{}', '2'), SNNBOOK_CACHE=str(tmp_path)) == ['1.5'] and len(list(tmp_path.glob('*.py'))) == made


def test_no_folder_to_write(tmp_path):
    code = "import torch; from snnbook import neuron; print(neuron.IFNode(step_mode='m', backend='numba')(torch.ones(2, 3)).sum().item())"
    assert python(code, SNNBOOK_CACHE='/dev/null/nowhere') == ['6.0']


def test_importing_the_neurons_imports_no_compiler():
    assert python("import sys, snnbook.neuron; print(*(m in sys.modules for m in ('numba', 'triton', 'torch._dynamo')))") == ['False'] * 3


def test_a_missing_engine_breaks_nothing(monkeypatch):
    monkeypatch.setattr(dispatch, '_installed', lambda name: False)
    node = neuron.LIFNode(step_mode='m')
    node(torch.ones(2, 3))
    assert node.backend_used == 'torch (numba is not installed)'
    with pytest.raises(ValueError, match='numba is not installed'): pair()[0](torch.ones(2, 3))


def test_smooth_surrogates_pass_gradcheck():
    x = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    node = neuron.LIFNode(surrogate_function=surrogate.Sigmoid(spiking=False), step_mode='m')
    assert torch.autograd.gradcheck(lambda x: copy.deepcopy(node)(x), (x,)) and math.isfinite(x.sum().item())


def test_twice_differentiated():
    out = []
    for node in pair(surrogate_function=surrogate.ATan()):
        torch.manual_seed(0)
        x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
        g, = torch.autograd.grad((node(x) * x.cos()).sum() + node.v.square().sum(), x, create_graph=True)
        out.append(torch.autograd.grad(g.square().sum(), x)[0])
    torch.testing.assert_close(*out)


def test_compiled_network():
    net = torch.nn.Sequential(torch.nn.Linear(6, 6), neuron.LIFNode(step_mode='m', surrogate_function=surrogate.ATan()))
    x = torch.randn(4, 3, 6)
    expected = net(x).detach()
    net[1].reset()
    assert torch.equal(torch.compile(net, backend='aot_eager')(x).detach(), expected)


def test_what_is_kept_for_backward():
    x, seen = torch.rand(16, 1000, requires_grad=True), {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.setdefault(t.data_ptr(), t), lambda t: t): s, _ = compiled.multi_step(x, 0., **LIF, surrogate=surrogate.ATan())
    extra = [t for t in seen.values() if t.data_ptr() not in (x.data_ptr(), s.data_ptr())]
    assert sum(t.nbytes for t in extra) <= .1 * x.nbytes
    assert len(plain.multi_step(x, torch.zeros(1000), **LIF, surrogate=surrogate.ATan())) == 3
