"NIR with Norse, snnTorch and SpikingJelly: their numbers from our import with a preset, our exports in their hands; what they get wrong stands here as a test"
import sys, types, warnings
import numpy as np, pytest, torch
from torch import nn
from snnbook import functional, neuron, nir_exchange as nx

nir = pytest.importorskip('nir')
DT, T = 1e-4, 40
R = np.random.default_rng(0)
W, B = (R.normal(size=(4, 3)) * 2).astype('f4'), R.normal(size=4).astype('f4')
X = torch.tensor(R.normal(size=(T, 2, 3))).float()
full = lambda v: np.full(4, v, 'f4')
TAUS = (R.uniform(3e-4, 3e-3, 4)).astype('f4')


def stepped(m):
    state, ys = None, []
    for x in X:
        y, state = m(x) if state is None else m(x, state)
        ys.append(y[0] if isinstance(y, tuple) else y)
    return torch.stack(ys).detach()


def snntorch(g):
    pytest.importorskip('snntorch', reason='needs the peer snntorch')
    from snntorch import import_nir
    return stepped(import_nir.import_from_nir(g))


def spikingjelly(g):
    pytest.importorskip('spikingjelly.activation_based.nir_exchange', reason='needs the peer spikingjelly')
    from spikingjelly.activation_based import nir_exchange
    return stepped(nir_exchange.import_from_nir(g, dt=DT))


def norse(g):
    try: import torch.utils.tensorboard  # noqa: F401, norse imports it for plots
    except ImportError: sys.modules['torch.utils.tensorboard'] = types.SimpleNamespace(SummaryWriter=object)
    pytest.importorskip('norse', reason='needs the peer norse')
    from norse.torch.utils.import_nir import from_nir
    return stepped(from_nir(g, dt=DT))


PEERS = dict(snntorch=snntorch, spikingjelly=spikingjelly, norse=norse)


def graph(node):
    return nir.NIRGraph(dict(input=nir.Input({'input': np.array([3])}), fc=nir.Affine(W, B), n=node, output=nir.Output({'output': np.array([4])})),
                        [('input', 'fc'), ('fc', 'n'), ('n', 'output')])


TAU = full(1e-3)
lif = lambda tau=TAU, r=1., leak=0., thr=.3: nir.LIF(tau=tau, r=full(r), v_leak=full(leak), v_threshold=full(thr))
cuba = lambda r, w, thr: nir.CubaLIF(tau_syn=full(5e-4), tau_mem=full(1e-3), r=full(r), v_leak=full(0), v_threshold=full(thr), w_in=full(w))
FILES = {
    'lif': (lif(), 'snntorch spikingjelly norse'), 'lif tau/dt': (lif(r=10., thr=1.), 'snntorch spikingjelly'), 'lif per neuron, leak': (lif(TAUS, leak=.1), 'norse'),
    'if r=1': (nir.IF(r=full(1), v_threshold=full(1)), 'norse'), 'if r=1/dt': (nir.IF(r=full(1e4), v_threshold=full(1)), 'spikingjelly norse'),
    'cuba': (cuba(10., 5., 1.), 'snntorch spikingjelly norse'), 'cuba r=1': (cuba(1., 1., .2), 'norse'),
}


@pytest.mark.parametrize('peer', PEERS)
@pytest.mark.parametrize('name', FILES)
def test_same_spikes_with_the_preset(name, peer):
    node, right = FILES[name]
    if peer not in right.split(): pytest.skip(f'{peer} refuses this file, or ignores a parameter of it')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        want = PEERS[peer](graph(node))
    got = nx.import_from_nir(graph(node), dt=DT, peer=peer, step_mode='m', return_state=False)(X).detach()
    assert 0 < want.sum() and torch.equal(got, want)


@pytest.mark.parametrize('name,peer', [('lif tau/dt', 'norse'), ('if r=1', 'snntorch')])
def test_what_a_peer_gets_wrong(name, peer):
    "Norse ignores r of a LIF; snnTorch 1.0 imports an IF as a leaky neuron with beta = 0.9"
    want = PEERS[peer](graph(FILES[name][0]))
    got = nx.import_from_nir(graph(FILES[name][0]), dt=DT, peer=peer, step_mode='m', return_state=False)(X).detach()
    assert not torch.equal(got, want)


NETS = {
    'lif': (lambda: [nn.Linear(3, 4), neuron.LIFNode(3.), nn.Linear(4, 5), neuron.LIFNode(2.)], 'ode', 'snntorch spikingjelly norse'),
    'lif whole input': (lambda: [nn.Linear(3, 4), neuron.LIFNode(3., decay_input=False)], 'ode', 'snntorch spikingjelly'),
    'plif': (lambda: [nn.Linear(3, 4), neuron.ParametricLIFNode(3.)], 'ode', 'snntorch spikingjelly norse'),
    'if': (lambda: [nn.Linear(3, 4), neuron.IFNode()], 'ode', 'spikingjelly norse'), 'if r=1': (lambda: [nn.Linear(3, 4), neuron.IFNode()], 'step', 'norse'),
    'cuba': (lambda: [nn.Linear(3, 4), neuron.CUBALIFNode()], 'ode', 'snntorch spikingjelly norse'),
}


@pytest.mark.parametrize('peer', PEERS)
@pytest.mark.parametrize('name', NETS)
def test_our_export_in_their_hands(name, peer, tmp_path):
    make, rule, right = NETS[name]
    if peer not in right.split(): pytest.skip(f'{peer} refuses this file, or ignores a parameter of it')
    torch.manual_seed(0)
    net = nn.Sequential(*make())
    for m in net:
        if isinstance(m, nn.Linear): m.weight.data *= 3
    nx.export_to_nir(net, X[0], tmp_path / 'net.nir', dt=DT, if_rule=rule)
    want = torch.stack([net(x) for x in X]).detach()
    assert 0 < want.sum() and torch.equal(PEERS[peer](nir.read(tmp_path / 'net.nir')), want)


def test_their_exports_in_our_hands(tmp_path):
    pytest.importorskip('spikingjelly', reason='needs the peer spikingjelly')
    from spikingjelly.activation_based import layer as sl, neuron as sn, nir_exchange as sx
    torch.manual_seed(0)
    net = nn.Sequential(sl.Conv2d(3, 4, 3, 1, 1), sn.IFNode(), nn.AvgPool2d(2), sl.Flatten(), nn.Linear(64, 5), sn.ParametricLIFNode(10., decay_input=False))
    sx.export_to_nir(net, example_input=torch.rand(2, 3, 8, 8), save_path=str(tmp_path / 'sj.nir'), dt=DT)
    m = nx.import_from_nir(tmp_path / 'sj.nir', dt=DT, peer='spikingjelly', return_state=False)
    functional.reset_net(m)
    for m_ in net.modules():
        if hasattr(m_, 'reset'): m_.reset()
    for x in torch.rand(T, 2, 3, 8, 8): assert torch.equal(m(x), net(x))
