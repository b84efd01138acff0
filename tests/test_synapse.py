"Synapse filters and recurrent containers: what their chapters leave out"
import copy, operator, pickle, shutil
import pytest, torch
from torch import nn
from torch.testing import assert_close
from hypothesis import given, settings, strategies as st
from snnbook import functional, layer
from snnbook.neuron import IFNode, LIFNode

T, N, C = 9, 2, 3
torch.manual_seed(0)
S, X = (torch.rand(T, N, C) < .4).double(), torch.randn(T, N, C).double()
TAUS = [5., torch.tensor([2., 5., 9.])]
compiler = pytest.mark.skipif(not shutil.which('g++') and not shutil.which('clang++'), reason='torch.compile on the CPU needs a C++ compiler')


@pytest.fixture(autouse=True)
def _no_code_compiled_for_another_test():
    yield
    torch._dynamo.reset()


def fresh(m): functional.reset_net(m); return m


def make_filter(tau=5., learnable=False, linear=False): return layer.SynapseFilter(tau, learnable, linear=linear).double()


@pytest.mark.parametrize('linear', [False, True])
@pytest.mark.parametrize('learnable', [False, True])
@pytest.mark.parametrize('tau', TAUS, ids=['number', 'tensor'])
def test_filter_among_the_tools_of_pytorch(tau, learnable, linear):
    f = make_filter(tau, learnable, linear)
    want = torch.zeros(N, C).double(), []
    for s in S:
        i = want[0]
        want = i - (1 if linear else 1 - s) * i / tau + s, [*want[1], i - (1 if linear else 1 - s) * i / tau + s]
    want = torch.stack(want[1])
    assert_close(torch.stack([f(s) for s in S]), want)
    for twin in copy.deepcopy(f), pickle.loads(pickle.dumps(f)):
        assert repr(twin) == repr(f) and torch.equal(twin.out_i, f.out_i)
        functional.set_step_mode(twin, 'm'); assert_close(fresh(twin)(S), want)
    other = make_filter(tau + 1 if learnable else tau, learnable, linear)
    other.load_state_dict(f.state_dict()); other.step_mode = 'm'
    assert_close(other(S), want)
    assert_close(torch.compile(fresh(other), backend='eager', fullgraph=True)(S), want)
    assert fresh(other)(S[:0]).shape == (0, N, C)
    assert set(f.state_dict()) == ({'w'} if learnable else {'_tau'} if isinstance(tau, torch.Tensor) else set())
    assert ('tau=tensor(3,)' if isinstance(tau, torch.Tensor) else 'tau=5,') in repr(f)


@settings(max_examples=30, deadline=None)
@given(tau=st.floats(1.001, 1000), pattern=st.lists(st.booleans(), min_size=1, max_size=40))
def test_filter_stays_within_its_bounds(tau, pattern):
    s = torch.tensor(pattern).double()[:, None]
    classic, linear = (layer.SynapseFilter(tau, step_mode='m', linear=b)(s) for b in (False, True))
    assert (linear <= classic + 1e-9).all() and (classic <= s.cumsum(0)).all() and (linear <= tau + 1e-6).all() and (linear >= 0).all()


@compiler
def test_compiled_layers_give_the_same_numbers():
    net = nn.Sequential(layer.LinearRecurrentContainer(nn.Tanh(), C, C), layer.SynapseFilter(4., True, linear=True)).double()
    functional.set_step_mode(net, 'm')
    want = net(X)
    assert_close(torch.compile(fresh(net))(X), want)


def test_spikes_of_any_type():
    assert layer.SynapseFilter()(S[0] > 0).dtype == torch.float32
    assert layer.SynapseFilter()(S[0].long()).dtype == torch.float32
    assert layer.SynapseFilter()(S[0].bfloat16()).dtype == torch.bfloat16


def test_filter_like_spikingjelly():
    sj = pytest.importorskip('spikingjelly.activation_based.layer', reason='compares with spikingjelly where it is installed')
    for learnable in False, True:
        assert_close(layer.SynapseFilter(7., learnable, step_mode='m')(S.float()), sj.SynapseFilter(7., learnable, step_mode='m')(S.float()))


LOOPS = {'elementwise': lambda: layer.ElementWiseRecurrentContainer(LIFNode(), operator.add), 'linear': lambda: layer.LinearRecurrentContainer(LIFNode(), C, C)}


@pytest.mark.parametrize('kind', LOOPS)
def test_loops_among_the_tools_of_pytorch(kind):
    torch.manual_seed(0)
    m, x = LOOPS[kind]().double(), 8 * X
    want = torch.stack([m(i) for i in x])
    assert 0 < want.mean() < 1
    for twin in copy.deepcopy(m), pickle.loads(pickle.dumps(m)):
        assert repr(twin) == repr(m) and torch.equal(twin.y, m.y)
        functional.set_step_mode(fresh(twin), 'm')
        assert twin.step_mode == 'm' and twin.sub_module.step_mode == 's'
        assert_close(twin(x), want)
    other = LOOPS[kind]().double()
    other.load_state_dict(m.state_dict()); other.step_mode = 'm'
    assert_close(other(x), want)
    assert_close(torch.compile(fresh(other), backend='eager')(x), want)
    assert fresh(other)(x[:0]).shape == (0, N, C)
    a = fresh(other)(x[:4]); saved = functional.memories(other)
    twin = copy.deepcopy(fresh(other)); functional.load_memories(twin, saved)
    assert_close(torch.cat([a, twin(x[4:])]), want)
    with pytest.raises(RuntimeError, match="memory 'y'"): twin(x[:, :1])


def test_loops_compile_as_one_graph():
    for m in layer.LinearRecurrentContainer(nn.Tanh(), C, C).double(), layer.ElementWiseRecurrentContainer(nn.Tanh(), torch.add):
        m.step_mode = 'm'
        want = m(X)
        assert_close(torch.compile(fresh(m), backend='eager', fullgraph=True)(X), want)


def test_leading_axes_and_scalars():
    m = layer.LinearRecurrentContainer(nn.Tanh(), C, C)
    x = torch.randn(2, 4, 5, C)
    a = torch.stack([m(i) for i in x]); functional.reset_net(m)
    b = torch.stack([m(i.reshape(-1, C)) for i in x]).view_as(a)
    assert_close(a, b)
    m = layer.ElementWiseRecurrentContainer(IFNode(v_reset=None), operator.add)
    assert [m(x).item() for x in torch.tensor([1.5, 0., 0., 0.])] == [1., 1., 1., 1.]


def test_loops_like_spikingjelly():
    sj = pytest.importorskip('spikingjelly.activation_based.layer', reason='compares with spikingjelly where it is installed')
    from spikingjelly.activation_based.neuron import IFNode as Peer
    x = X.float()
    def f(a, b): return .3 * a + b
    ours, theirs = layer.ElementWiseRecurrentContainer(IFNode(), f), sj.ElementWiseRecurrentContainer(Peer(), f)
    assert torch.equal(torch.stack([ours(i) for i in x]), torch.stack([theirs(i) for i in x]))
    ours, theirs = layer.LinearRecurrentContainer(IFNode(), C, C), sj.LinearRecurrentContainer(Peer(), C, C)
    theirs.load_state_dict(ours.state_dict())
    assert_close(torch.stack([ours(i) for i in x]), torch.stack([theirs(i) for i in x]))


@pytest.mark.parametrize('mode', 'sm')
@pytest.mark.parametrize('d', [0, 1, 3, 20])
def test_delay_like_spikingjelly(d, mode):
    sj = pytest.importorskip('spikingjelly.activation_based.layer', reason='compares with spikingjelly where it is installed')
    ours, theirs = layer.Delay(d, mode), sj.Delay(d, mode)
    for x in S, X:
        a, b = (m(x) if mode == 'm' else torch.stack([m(s) for s in x]) for m in (ours, theirs))
        assert torch.equal(a, b)


@pytest.mark.parametrize('d', [0, 1, 3])
def test_delay_goes_to_nir_and_back(d):
    nir = pytest.importorskip('nir')
    from snnbook import nir_exchange
    net = nn.Sequential(layer.Linear(C, 4), IFNode(), layer.Delay(d), layer.Linear(4, 2), LIFNode())
    functional.set_step_mode(net, 'm')
    graph = nir_exchange.export_to_nir(net, X.float())
    assert sum(isinstance(n, nir.Delay) for n in graph.nodes.values()) == (d > 0)
    back = nir_exchange.import_from_nir(graph, step_mode='m', return_state=False)
    assert_close(back(3 * X.float()), fresh(net)(3 * X.float()))
