"The compiled neurons against the plain loop, where a chapter would bore: types, layouts, threads, forks, caches"
import copy
import math
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from snnbook import dynamics, functional, layer, neuron, surrogate
from snnbook.kernels import dispatch
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


NODES = dict(IF=dict(), LIF=dict(tau=3.), ParametricLIF={}, QIF=dict(tau=4.), EIF=dict(tau=4., delta_T=.5), Izhikevich=dict(tau=4., tau_w=3., a=.2, b=.1),
             AdaptiveLIF=dict(tau_a=5.), CUBALIF={}, KLIF=dict(tau=3.), KLIFscaled=dict(scale_reset=True, decay_input=False), AdaptiveLIFwhole=dict(decay_input=False))


def make(name, **kwargs):
    cls = getattr(neuron, name.replace('scaled', '').replace('whole', '') + 'Node')
    return cls(**NODES[name], **kwargs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', NODES)
def test_half_precision_is_the_same_however_it_runs(name, dtype):
    torch.manual_seed(0)
    x, w, out = (torch.randn(9, 500) * 2).to(dtype), torch.randn(9, 500).to(dtype), []
    single = make(name, step_mode='m', backend='torch', surrogate_function=surrogate.ATan())
    expected = train(single, x.float(), w.float())
    for backend, pieces in ('torch', 's'), ('torch', (9,)), ('torch', (4, 5)), ('numba', (9,)), ('numba', (1, 3, 5)):
        node, leaf = make(name, step_mode='s' if pieces == 's' else 'm', backend=backend, surrogate_function=surrogate.ATan()), x.detach().requires_grad_()
        s = torch.stack([node(i) for i in leaf]) if pieces == 's' else torch.cat([node(i) for i in leaf.split(pieces)])
        ((s * w).sum() + node.v.square().sum()).backward()
        assert s.dtype == dtype and node.v.dtype == torch.float32 and leaf.grad.dtype == dtype
        out.append((s.detach(), node.v.detach(), leaf.grad))
        assert torch.equal(s.float(), expected[0])
        torch.testing.assert_close(node.v, expected[1], rtol=0, atol=1e-5 if name == 'EIF' else 0) # an exponential of our own
    for s, _, g in out[1:]:
        assert torch.equal(s, out[0][0])
        torch.testing.assert_close(g.float(), out[0][2].float(), rtol=2e-2, atol=1e-6)


def test_a_half_precision_network_keeps_going():
    node = neuron.LIFNode(tau=torch.tensor([2., 3.]), step_mode='m').half()
    x = torch.rand(4, 3, 2).half()
    whole = node(x)
    assert node.backend_used == 'numba' and node.v.dtype == torch.float32
    node.reset()
    pieces = [node(x[:2])]
    node.half()                                                     # makes the memory half, for a moment
    pieces.append(node(x[2:]))
    assert torch.equal(torch.cat(pieces), whole) and node.v.dtype == torch.float32


@pytest.mark.parametrize('v_reset', [None, -.3])
@pytest.mark.parametrize('name', NODES)
def test_every_neuron_in_every_way(name, v_reset):
    torch.manual_seed(0)
    base = torch.randn(10, 2, 6, 5, 4) * 2
    last = base.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (10, 2))
    for x, more in (base, dict(v_reset=v_reset)), (last, dict(v_reset=v_reset, detach_reset=True, store_v_seq=True)), (base[:1], dict(v_reset=v_reset)), (base[:, :0], {}):
        out, w, u = [], torch.randn(x.shape), torch.randn(x.shape)
        for backend, pieces in ('torch', (len(x),)), ('numba', (len(x),)), ('numba', (len(x) // 2, len(x) - len(x) // 2)), ('torch', None):
            node = make(name, **more, step_mode='m' if pieces else 's', backend=backend, surrogate_function=surrogate.ATan())
            leaf, vs = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(), []
            s = []
            for piece in leaf.split([p for p in pieces if p]) if pieces else leaf:
                s.append(node(piece))
                if node.store_v_seq and pieces: vs.append(node.v_seq)
            laid = s[0].stride()
            s = torch.cat(s) if pieces else torch.stack(s)
            assert backend != 'numba' or laid == x.stride() or not x.numel() or len(x) == 1
            if node.store_v_seq and not pieces: vs = [node.v_seq]
            memories = [m for n, m in node.named_memories() if n != 'v_seq']
            loss = (s * w).sum() + sum(m.square().sum() for m in memories) + ((torch.cat(vs) * u).sum() if vs else 0)
            out.append([s, *memories, *torch.autograd.grad(loss, [leaf, *node.parameters()], allow_unused=True)])
            assert not pieces or node.backend_used == backend
        for other in out[1:]:
            assert torch.equal(other[0], out[0][0])
            for a, b in zip(other, out[0]): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', NODES)
def test_every_constant_learns(name):
    torch.manual_seed(0)
    x, w, out = torch.randn(7, 3, 4, dtype=torch.float64) * 2, torch.randn(7, 3, 4, dtype=torch.float64), []
    for backend in 'torch', 'numba':
        node = make(name, step_mode='m', backend=backend, surrogate_function=surrogate.Sigmoid()).double()
        for n in neuron._constants:
            if isinstance(getattr(node, n, None), float) and n != 'tau_a': setattr(node, n, torch.nn.Parameter(torch.full((4,), getattr(node, n), dtype=torch.float64)))
        for n in [n for n in node._starts if n != 'v_seq']: setattr(node, n, torch.full((3, 4), .2, dtype=torch.float64, requires_grad=True))
        first = [getattr(node, n) for n in node._starts if n != 'v_seq']
        s = node(x)
        ends = [getattr(node, n) for n in node._starts if n != 'v_seq']
        out.append([s, *torch.autograd.grad((s * w).sum() + sum(e.square().sum() for e in ends), [*first, *node.parameters()], allow_unused=True)])
        assert node.backend_used == backend and len(first) == len(node.equation_memories)
    assert torch.equal(out[0][0], out[1][0])
    for a, b in zip(*out): assert (a is None) == (b is None) or not (a if b is None else b).any(); a is None or b is None or torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('name', NODES)
def test_the_backward_of_smooth_spikes_passes_gradcheck(name): # of the loop; the kernels are compared with it above
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    node = make(name, step_mode='m', surrogate_function=surrogate.ATan(spiking=False)).double()
    assert torch.autograd.gradcheck(lambda x: copy.deepcopy(node)(x), (x,))


def test_a_neuron_of_ones_own_is_compiled():
    class Cubic(neuron.BaseNode):
        def equation(self): return cubic, (2.,)
    x, out = torch.randn(6, 50), []
    for backend in 'torch', 'numba':
        node = Cubic(step_mode='m', backend=backend, surrogate_function=surrogate.ATan())
        out.append(train(node, x, torch.ones(6, 50)))
        assert node.backend_used == backend
    for a, b in zip(*out): torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    class Careful(neuron.BaseNode):
        def equation(self): return careful, ()
    node = Careful(step_mode='m')
    assert node(x[:, :1]).shape == (6, 1) and node.backend_used.startswith('torch (an equation that asks')


def cubic(v, x, tau): return v + (x - v * v * v / 3) / tau
def careful(v, x): return v + x if v > 0 else x


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
from snnbook.kernels.dispatch import multi_step
from snnbook.surrogate import ATan
def leak(v, x): return v / SHARE + x
SHARE = {}
print(multi_step(torch.ones(2, 1), 0., leak, (), 9., 0., ATan(), backend='numba')[1].item())
'''
    assert python(code.replace('{}', '2'), SNNBOOK_CACHE=str(tmp_path)) == ['1.5']
    assert python(code.replace('{}', '4'), SNNBOOK_CACHE=str(tmp_path)) == ['1.25']
    made = len(list(tmp_path.glob('*.o')))
    assert made == 2 and python(code.replace('{}', '2'), SNNBOOK_CACHE=str(tmp_path)) == ['1.5'] and len(list(tmp_path.glob('*.o'))) == made


def test_no_folder_to_write(tmp_path):
    code = "import torch; from snnbook import neuron; print(neuron.IFNode(step_mode='m', backend='numba')(torch.ones(2, 3)).sum().item())"
    assert python(code, SNNBOOK_CACHE='/dev/null/nowhere') == ['6.0']


def test_a_full_disk(tmp_path, monkeypatch): # a folder that takes no file
    from snnbook.kernels import compile
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(compile.os, 'replace', full)
    compile.keep_file(tmp_path/'k.o', b'1234')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('broken', ['llvmlite', 'numba'])
def test_a_broken_compiler_breaks_nothing(broken, tmp_path): # as a Numba is that does not know the NumPy beside it
    code = f"import sys; sys.modules[{broken!r}] = None; import importlib.util as u; find = u.find_spec; u.find_spec = lambda name: name == {broken!r} or find(name)\n" \
            "import torch; from snnbook import neuron\nfor _ in '12': n = neuron.IFNode(step_mode='m'); print(n(torch.ones(2, 3)).sum().item(), n.backend_used.split(':')[0])"
    assert python(code, SNNBOOK_CACHE=str(tmp_path)) == ['6.0', 'torch', '(numba', 'could', 'not', 'compile', 'it'] * 2


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
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.setdefault(t.data_ptr(), t), lambda t: t):
        s = dispatch.multi_step(x, 0., **LIF, surrogate=surrogate.ATan(), backend='numba')[0]
    extra = [t for t in seen.values() if t.data_ptr() not in (x.data_ptr(), s.data_ptr())]
    assert sum(t.nbytes for t in extra) <= .1 * x.nbytes
    assert len(plain.multi_step(x, torch.zeros(1000), **LIF, surrogate=surrogate.ATan())) == 3


def test_more_numbers_than_32_bits_can_count(tmp_path):
    from snnbook.kernels import numba as engine
    N, size = 2**31 + 64, 2 * (2**31 + 64) * 2                                      # two steps of half precision: 8.6 GB, of which a few pages are touched
    file = tmp_path / 'sparse'
    with open(file, 'wb') as f: f.truncate(size)
    s = torch.from_file(str(file), shared=True, size=2 * N, dtype=torch.float16)
    end = torch.ones(16)
    kernel, last = engine._forward(dynamics.if_charge, torch.float16, 'ss', False, 's', False), N - 16
    row = torch.full((16,), .6, dtype=torch.float16)                                # the kernel adds `last` numbers to these addresses
    kernel(row.data_ptr() - 2 * last, 0, s.data_ptr(), end.data_ptr() - 4 * last, 0., 2, N, 16384, 1., 0., last, N)
    assert not s[last:N].any() and (s[2 * N - 16:] == 1).all() and not s[N + last - 16:N + last].any() and not end.any()


@pytest.mark.parametrize('dynamic', [False, True])
def test_a_compiled_network_whose_layers_lie_channels_last(dynamic):
    torch.manual_seed(0)
    net = torch.nn.Sequential(layer.Conv2d(2, 4, 3, padding=1, step_mode='m'), neuron.LIFNode(step_mode='m'), layer.Conv2d(4, 3, 1, step_mode='m'), neuron.IFNode(step_mode='m'))
    fast = functional.optimize(net.eval(), channels_last=True)
    compiled = torch.compile(fast, backend='aot_eager', dynamic=dynamic)
    for n in 3, 2, 4:
        x = torch.rand(5, n, 2, 6, 6).flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (5, n)) * 3
        x.requires_grad_(); out = []
        for f in fast, compiled:
            y = f(x); out.append((y.detach(), *torch.autograd.grad(y.sum(), x))); functional.reset_net(fast)
        assert torch.equal(out[0][0], out[1][0]) and 0 < out[0][0].sum()
        torch.testing.assert_close(out[0][1], out[1][1])


@pytest.mark.parametrize('lay', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('shape', [(3, 4, 6, 6), (3, 1, 6, 6), (1, 4, 1, 1), (0, 4, 6, 6)], ids=str)
def test_outputs_are_laid_out_as_the_shape_rule_says(lay, shape):
    x = (torch.rand(5, *shape) * 2).flatten(0, 1).contiguous(memory_format=lay).unflatten(0, (5, shape[0]))
    node = neuron.LIFNode(step_mode='m'); want = node(x); node.reset()
    got = torch.compile(node, backend='aot_eager', fullgraph=True)(x)
    assert torch.equal(got, want) and got.stride() == want.stride()


@pytest.mark.filterwarnings('ignore')
def test_torch_jit_trace_takes_the_loop():
    x = torch.rand(4, 3, 5) * 2
    for node in neuron.IFNode(step_mode='m'), neuron.LIFNode(step_mode='m', v_reset=None):
        want = node(x); node.reset()
        traced = torch.jit.trace(node, x, check_trace=False); node.reset()
        assert torch.equal(traced(x), want)


def test_tensors_without_numbers_are_left_to_the_operator():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._pytree import tree_map
    with FakeTensorMode():
        x, node = torch.randn(4, 3, requires_grad=True), neuron.ParametricLIFNode(step_mode='m')
        y = node(x); y.sum().backward()
        assert y.shape == x.grad.shape == (4, 3) and node.backend_used == 'numba'
    node = lambda x: neuron.LIFNode(step_mode='m')(x)
    x, other = torch.randn(4, 3), torch.randn(4, 3) * 3
    for mode in 'real', 'fake': assert torch.equal(make_fx(node, tracing_mode=mode)(x)(other), node(other)) # nothing baked in

    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
            self.inner = inner
            return self
        @classmethod
        def __torch_dispatch__(cls, fn, types, args=(), kwargs=None):
            out = fn(*tree_map(lambda a: a.inner if isinstance(a, Wrapper) else a, args), **(kwargs or {}))
            return tree_map(lambda o: Wrapper(o) if isinstance(o, torch.Tensor) else o, out)
    assert torch.equal(node(Wrapper(x)).inner, node(x))
    assert torch.equal(node(torch._efficientzerotensor((4, 3))), torch.zeros(4, 3))


def test_a_traced_call_has_the_reasons_of_an_eager_one(monkeypatch):
    hooked = surrogate.ATan()
    hooked.register_full_backward_hook(lambda *_: None)
    cases = [(dict(tau=torch.full((3,), 2., dtype=torch.float64)), 'but a constant or a memory is'), (dict(surrogate_function=hooked), 'has hooks'),
             (dict(surrogate_function=lambda x: (x >= 0).to(x)), 'is not a SurrogateFunction')]
    for kwargs, why in cases:
        x, out = torch.randn(4, 3), []
        for wrap in lambda n: n, lambda n: torch.compile(n, backend='aot_eager'):
            torch._dynamo.reset()
            node = neuron.LIFNode(step_mode='m', **kwargs)
            out.append(wrap(node)(x))
            assert why in node.backend_used and node.v.dtype == out[0].dtype
        assert out[0].dtype == out[1].dtype and torch.equal(*out)
    torch._dynamo.reset()
    monkeypatch.setattr(dispatch, '_installed', lambda name: False)
    node = neuron.LIFNode(step_mode='m')
    torch.compile(node, backend='aot_eager')(torch.randn(4, 3))
    assert node.backend_used == 'torch (numba is not installed)'


@pytest.mark.parametrize('dims', [(0,), (1,), (0, 1)], ids=str)
def test_export_with_sizes_that_may_change(dims):
    net = torch.nn.Sequential(layer.Linear(5, 6, step_mode='m'), layer.BatchNorm1d(6, step_mode='m'), neuron.ParametricLIFNode(step_mode='m')).eval()
    shape = {d: torch.export.Dim('TN'[d], min=2, max=64) for d in dims}
    exported = torch.export.export(net, (torch.randn(4, 3, 5),), dynamic_shapes=(shape,)).module()
    x = torch.randn(7 if 0 in dims else 4, 9 if 1 in dims else 3, 5)
    functional.reset_net(net)
    assert torch.equal(exported(x), net(x))


def test_a_damaged_cache_is_made_anew(tmp_path):
    code = '''
import torch
from snnbook import neuron
node, x = neuron.IFNode(step_mode='m', backend='numba'), torch.ones(2, 3, requires_grad=True)
node(x).sum().backward()
print(node.backend_used)
'''
    assert python(code, SNNBOOK_CACHE=str(tmp_path)) == ['numba']
    files = [f for f in tmp_path.rglob('*.o')]
    assert len(files) >= 2
    for damaged in b'garbage', files[0].read_bytes()[:-100]:
        for f in files: f.write_bytes(damaged)
        assert python(code, SNNBOOK_CACHE=str(tmp_path)) == ['numba'] and not any(f.read_bytes() == damaged for f in files)
    assert python(code.replace(", backend='numba'", ''), NUMBA_DISABLE_JIT='1') == ['torch', '(NUMBA_DISABLE_JIT', 'is', 'set)']


def test_equations_of_all_kinds():
    class Half(neuron.BaseNode):
        def equation(self): return (lambda v, x: v * .5 + x), ()
    node, x = Half(step_mode='m'), torch.randn(4, 3)
    node(x); node(x)
    from snnbook.kernels import numba as engine
    made = engine._forward.cache_info().currsize
    for _ in range(3): node(x)
    assert engine._forward.cache_info().currsize == made and node.backend_used == 'numba'
    ran = dispatch.multi_step(x, 0., lambda v, x, *rest: v + x, (1.,), 1., 0., surrogate.ATan())[3]
    assert ran[0] == 'torch' and ran[1].startswith('numba could not compile it')


def test_a_memory_from_inference_mode_may_be_trained_on():
    node, x = neuron.LIFNode(step_mode='m'), torch.rand(4, 3)
    with torch.inference_mode(): node(x)
    x.requires_grad_(); node(x).sum().backward()
    assert x.grad is not None and node.backend_used == 'numba'


def _twice(v, w, x, tau): w = w * .9 + v * .1; return v + (x - v - w) / tau, w


class Twice(neuron.BaseNode): # two memories, and no entry anywhere
    equation_memories = 'v', 'w'
    def __init__(self, **kwargs): super().__init__(**kwargs); self.register_memory('w', 0.)
    def equation(self): return _twice, (2.,)


def test_an_equation_with_two_memories():
    x, out = torch.randn(6, 4) * 2, []
    for kwargs in dict(step_mode='m', backend='numba'), dict(step_mode='m', backend='torch'), dict():
        node = Twice(**kwargs)
        out.append((torch.stack([node(i) for i in x]) if not kwargs else node(x), node.v, node.w))
    for other in out[1:]:
        assert torch.equal(other[0], out[0][0])
        for a, b in zip(other, out[0]): torch.testing.assert_close(a, b)
    node = Twice(step_mode='m')
    assert torch.equal(torch.compile(node, backend='aot_eager', fullgraph=True)(x), out[0][0]) and node.backend_used == 'numba'

    class Wrong(Twice):
        def equation(self): return dynamics.lif_charge, (2., 0.)

    class Few(neuron.BaseNode):
        def equation(self): return dynamics.cuba_charge, (.5, .5)

    class Less(Twice):
        def equation(self): return (lambda v, w, x: v + x), ()
    with pytest.raises(ValueError, match='takes 4 arguments, but the neuron has 2 memories'): Wrong(step_mode='m')(x)
    with pytest.raises(ValueError, match='is an equation of 2 memories, but the neuron has 1'): Few(step_mode='m')(x)
    for mode in 'sm':
        with pytest.raises(ValueError, match='gives 1'): Less(step_mode=mode)(x)
    assert dynamics.lif_charge not in dynamics.equations


@pytest.mark.parametrize('mode', ['s', 'm'])
def test_inputs_that_are_no_floating_point_tensors(mode):
    x = torch.rand(4, 3) < .5
    for dtype in torch.bool, torch.int64, torch.uint8:
        node, plain = neuron.LIFNode(step_mode=mode), neuron.LIFNode(step_mode=mode)
        assert torch.equal(node(x.to(dtype)), plain(x.float())) and node.v.dtype == torch.float32
    for wrong in [1., 2.], None, torch.rand(4, 3) * 1j, 'x':
        with pytest.raises(TypeError, match='the input must be a'): neuron.LIFNode(step_mode=mode)(wrong)


@pytest.mark.parametrize('backend', ['torch', 'numba'])
def test_no_steps_stay_in_the_graph(backend):
    x = torch.rand(0, 3, requires_grad=True)
    net = torch.nn.Sequential(layer.Linear(3, 2), neuron.LIFNode(backend=backend), layer.Linear(2, 2))
    functional.set_step_mode(net, 'm')
    y = net(x[:, None].expand(0, 5, 3)); y.sum().backward()
    assert y.shape == (0, 5, 2) and x.grad.shape == (0, 3) and all(p.grad is not None for p in net.parameters())


def test_what_is_changed_in_one_instance_counts():
    x, node = torch.ones(4, 3) * 9, neuron.LIFNode(step_mode='m')
    node.neuronal_fire = lambda: torch.zeros_like(node.v)
    assert not node(x).any() and 'has a neuronal_fire of its own' in node.backend_used
    node = neuron.LIFNode(step_mode='m')
    node.surrogate_function.forward = torch.zeros_like
    assert not node(x).any() and 'a method of its own' in node.backend_used

    class Own(neuron.LIFNode):
        def neuronal_fire(self): return super().neuronal_fire()
    node = Own(); node(x[0])
    assert node.backend_used == 'torch (one step at a time, and Own has a neuronal_fire of its own)'


def test_bad_constructors_are_refused():
    for kwargs in dict(detach_reset='x'), dict(store_v_seq=3), dict(surrogate_function=surrogate.ATan), dict(surrogate_function='atan'):
        with pytest.raises(TypeError, match=next(iter(kwargs))): neuron.LIFNode(**kwargs)
    with torch.device('meta'): assert neuron.ParametricLIFNode().w.device.type == 'meta'


def test_potentials_stored_step_by_step():
    x = torch.randn(9, 3, requires_grad=True)
    node, whole = neuron.LIFNode(store_v_seq=True), neuron.LIFNode(store_v_seq=True, step_mode='m')
    for t, i in enumerate(x):
        node(i)
        if t in (2, 5): assert node.v_seq.shape == (t + 1, 3)               # looking in between changes nothing
    whole(x)
    assert torch.equal(node.v_seq, whole.v_seq) and node.v_seq is node.v_seq
    for a, b in zip(*(torch.autograd.grad(n.v_seq.square().sum(), x) for n in (node, whole))): torch.testing.assert_close(a, b)
    assert torch.equal(copy.deepcopy(node).v_seq, whole.v_seq)
    node.reset()
    assert node.v_seq is None


@pytest.mark.parametrize('name', NODES)
def test_forward_mode_gives_the_derivative_of_backward_mode(name):
    torch.manual_seed(0)
    x, change = torch.randn(2, 5, 4, dtype=torch.float64)
    for kwargs in dict(v_reset=None), dict(v_reset=-.1, detach_reset=True):
        node = make(name, step_mode='m', **kwargs).double()

        def total(x, node=node): node.reset(); return node(x).sum()
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(torch.func.jvp(total, (x,), (change,))[1], (torch.autograd.grad(total(leaf), leaf)[0] * change).sum())


@pytest.mark.parametrize('v_reset', [None, 0.])
def test_infinities_are_the_same_however_it_runs(v_reset):
    x, out = torch.randn(6, 5), []
    x[1, :4] = torch.tensor([math.nan, math.inf, -math.inf, 1e-42])
    for backend in 'torch', 'numba':
        node = neuron.IFNode(v_reset=v_reset, step_mode='m', backend=backend)
        out.append((node(x), node.v))
    for a, b in zip(*out): torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('charge', [lambda v, x: v * .5 + torch.relu(x), lambda v, x: torch.minimum(v + x, x * 2), lambda v, x: torch.maximum(v, x) + x,
                                    lambda v, x: torch.clamp(v + x, -1, 2), lambda v, x: v - torch.square(v) / 4 + torch.nn.functional.relu(x)],
                         ids=['relu', 'minimum', 'maximum', 'clamp', 'square'])
def test_functions_spelled_out_are_those_of_torch(charge):
    torch.manual_seed(0)
    x, w, out = torch.randn(6, 40, dtype=torch.float64).round(decimals=1), torch.randn(6, 40, dtype=torch.float64), []
    x[:, :5], x[0, 7], x[1, 8] = 0, math.nan, math.inf
    for backend in 'numba', 'torch':
        leaf = x.clone().requires_grad_()
        s, v, _, ran = dispatch.multi_step(leaf, 0., charge, (), 1., 0., surrogate.ATan(), backend=backend)
        g, = torch.autograd.grad((s * w).sum() + v.nan_to_num(posinf=0).sum(), leaf)
        out.append((s, v, torch.cat([g[:, :7], g[:, 8:]], 1)))              # the slope at what is no number means nothing
        assert ran[0] == backend
    for a, b in zip(*out): torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize('make', [lambda: surrogate.ATan(3.), lambda: surrogate.LeakyKReLU(.1, .9)], ids=['atan', 'leaky'])
def test_the_plain_loop_trains_in_one_compiled_graph(make):
    torch._dynamo.reset()
    node, x = neuron.LIFNode(3., surrogate_function=make(), step_mode='m', backend='torch'), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    (node(a) * x).sum().backward()
    node.reset()
    (torch.compile(node, backend='aot_eager', fullgraph=True)(b) * x).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.skipif(not shutil.which('g++') and not shutil.which('clang++'), reason='needs a C++ compiler')
@pytest.mark.skipif(torch.__version__ < '2.9', reason='tried with newer ones')
def test_a_network_compiled_ahead_of_time(tmp_path): # its memories start as numbers, so the operator gets no tensor but the sequence
    net = torch.nn.Sequential(layer.Linear(5, 6, step_mode='m'), neuron.LIFNode(step_mode='m')).eval()
    x = torch.randn(4, 3, 5) * 3
    package = torch._inductor.aoti_compile_and_package(torch.export.export(net, (x,)), package_path=str(tmp_path/'net.pt2'))
    functional.reset_net(net)
    assert torch.equal(torch._inductor.aoti_load_package(package)(x), net(x)) and net[1].v.any()


def test_equations_that_differ_in_a_default_value_only():
    def make(share):
        def charge(v, x, share=share): return v * share + x
        return charge
    x = torch.rand(6, 50)
    for share in .5, .9:
        a, b = (dispatch.multi_step(x, 0., make(share), (), 1., 0., surrogate.ATan(), backend=b) for b in ('numba', 'torch'))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]), share # in single precision, too


class Triangle(surrogate.SurrogateFunction):
    primitive_function, gradient = staticmethod(torch.sigmoid), staticmethod(lambda x, alpha: torch.clamp(alpha - abs(x), min=0.))


class Unreadable(Triangle): # a kernel takes no `input=`, which is seen on the way back only
    gradient = staticmethod(lambda x, alpha: torch.clamp(input=alpha - abs(x), min=0.))


@pytest.mark.parametrize('kind, then', [(Triangle, 'numba'), (Unreadable, 'torch (numba could not compile it')])
def test_gradients_of_ones_own(kind, then):
    torch.manual_seed(0)
    x, found = torch.randn(7, 30, requires_grad=True), []
    for backend in 'auto', 'torch':
        node = neuron.LIFNode(surrogate_function=kind(), step_mode='m', backend=backend)
        found.append(torch.autograd.grad(node(x * 2).cumsum(0).sin().sum() + node.v.sum(), x)[0])
        if backend == 'auto': assert node.backend_used == 'numba'; node.reset(); node(x); assert node.backend_used.startswith(then)
    torch.testing.assert_close(*found)


def test_an_equation_with_a_function_inside_is_found_on_disk(tmp_path):
    code = """
import torch; from snnbook import neuron; from snnbook.kernels.compile import fingerprint
def leak(v, x):
    def half(a): return a * .5
    return half(v) + x
print(fingerprint(leak))"""
    (first,), (again,), (other,) = (python(c, SNNBOOK_CACHE=str(tmp_path)) for c in (code, 'kept = [0] * 1000' + code, code.replace('.5', '.4')))
    assert first == again != other


def test_a_compiled_network_with_a_part_that_is_run_again():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.out = torch.nn.Sequential(layer.Linear(8, 8), neuron.ParametricLIFNode()), layer.Linear(8, 3)
            functional.set_step_mode(self, 'm')
        def forward(self, x): return self.out(functional.checkpoint(self.part, x))
    torch.manual_seed(0)
    net, x, found = Net(), torch.randn(6, 4, 8) * 2, []
    for f in net, torch.compile(net, backend='aot_eager'):
        functional.reset_net(net); found.append(torch.autograd.grad(f(x).square().sum(), [*net.parameters()]))
    torch.testing.assert_close(*found)
