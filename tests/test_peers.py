"Forwarders, layers, parallel neurons, their weights and whole networks beside SpikingJelly; LIF beside Norse"
import sys, types
from pathlib import Path
import pytest, torch
from torch import nn
from torch.nn import functional as F
from snnbook import base, functional, layer, neuron, surrogate

NETS = dict(conv=(lambda: [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)], (2, 4, 4)),
            dense=(lambda: [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)], (6,)))
LAYERS = [('Conv1d', (2, 3, 3), (2, 9)), ('Conv2d', (2, 3, 3, 1, 1), (2, 7, 7)), ('Conv3d', (2, 3, 3), (2, 5, 5, 5)), ('ConvTranspose2d', (2, 3, 3), (2, 5, 5)),
          ('Linear', (6, 3), (6,)), ('BatchNorm1d', (6,), (6,)), ('BatchNorm1d', (6,), (6, 3)), ('BatchNorm2d', (3,), (3, 5, 5)), ('BatchNorm3d', (3,), (3, 5, 5, 2)),
          ('GroupNorm', (3, 6), (6, 5)),
          ('MaxPool1d', (2,), (3, 6)), ('MaxPool2d', (2,), (3, 6, 6)), ('AvgPool2d', (2, 2), (3, 6, 6)), ('AvgPool3d', (2,), (3, 6, 6, 6)), ('AdaptiveAvgPool1d', (2,), (3, 6)),
          ('AdaptiveAvgPool2d', (2,), (3, 6, 6)), ('Flatten', (), (3, 6)), ('Upsample', (None, 2), (3, 6, 6))]
PARALLEL = [('PSN', (8,), {}), ('SlidingPSN', (3,), dict(step_mode='m')), ('SlidingPSN', (3, False), dict(step_mode='m')), ('SlidingPSN', (12,), dict(step_mode='m')),
            ('ParametricLIFNode', (3.,), dict(step_mode='m')), ('KLIFNode', (), dict(step_mode='m'))]


def peer(name): return pytest.importorskip(f'spikingjelly.activation_based.{name}', reason='needs the peer spikingjelly')


@pytest.mark.parametrize('T,N', [(1, 1), (3, 2), (5, 4)])
@pytest.mark.parametrize('form', [list, tuple, lambda ms: nn.Sequential(*ms)], ids=['list', 'tuple', 'Sequential'])
@pytest.mark.parametrize('net', NETS)
@pytest.mark.parametrize('name', ['multi_step_forward', 'seq_to_ann_forward', 't_last_multi_step_forward', 't_last_seq_to_ann_forward'])
def test_forwarders(name, net, form, T, N):
    sj = peer('functional')
    if name == 't_last_seq_to_ann_forward' and net == 'conv': pytest.skip('batch norm does not work there in the peer')
    torch.manual_seed(0)
    make, shape = NETS[net]
    modules, x = form([m.eval() for m in make()]), torch.randn(T, N, *shape)
    if name.startswith('t_last'): x = x.movedim(0, -1)
    torch.testing.assert_close(getattr(functional, name)(x, modules), getattr(sj, name)(x, modules))


@pytest.mark.parametrize('mode', ['s', 'm'])
@pytest.mark.parametrize('name,args,shape', LAYERS, ids=lambda v: str(v))
def test_layers(name, args, shape, mode):
    sj, nets = peer('layer'), []
    for room in layer, sj: torch.manual_seed(0); nets.append(getattr(room, name)(*args, step_mode=mode))
    x = torch.randn(*((4, 2) if mode == 'm' else (8,)), *shape)
    torch.testing.assert_close(nets[0](x), nets[1](x))
    torch.testing.assert_close(dict(nets[0].state_dict()), dict(nets[1].state_dict()))


@pytest.mark.parametrize('name,args,kwargs', PARALLEL, ids=lambda v: str(v))
def test_weights_move_over(name, args, kwargs):
    sj = peer('neuron')
    torch.manual_seed(0)
    theirs, ours, out = getattr(sj, name)(*args, **kwargs), getattr(neuron, name)(*args, **kwargs), []
    ours.load_state_dict(theirs.state_dict())
    x_seq = torch.randn(8, 5, 3) * 2
    for node in ours, theirs:
        x = x_seq.clone().requires_grad_()
        s = node(x)
        s.square().sum().backward()
        out.append((s.detach(), x.grad, [p.grad for p in node.parameters()]))
    assert torch.equal(out[0][0], out[1][0]) and 0 < out[0][0].mean() < 1
    torch.testing.assert_close(out[0], out[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('v_reset', [0., -.4])
def test_norse_lif(v_reset):
    box = pytest.importorskip('norse.torch.functional.lif_box', reason='needs the peer norse')
    torch.manual_seed(0)
    number = torch.as_tensor
    p = box.LIFBoxParameters(tau_mem_inv=number(100.), v_leak=number(v_reset), v_th=number(1.), v_reset=number(v_reset))
    x, state, theirs = torch.rand(40, 64) * 3, box.LIFBoxFeedForwardState(v=torch.full((64,), v_reset)), []
    for i in x:
        s, state = box.lif_box_feed_forward_step(i, state, p, dt=.003)
        theirs.append(s)
    ours = neuron.LIFNode(tau=1 / .3, v_reset=v_reset, step_mode='m')(x)
    assert (ours != torch.stack(theirs)).float().mean() <= 1e-3 and 0 < ours.mean() < 1


NETWORKS = {'plif': ('parametric_lif_net', (3, 32), lambda m, n, s: m.CIFAR10Net(channels=4, spiking_neuron=n.IFNode, surrogate_function=s.ATan())),
            'vote': ('parametric_lif_net', (2, 128), lambda m, n, s: m.DVSGestureNet(
                channels=2, spiking_neuron=n.ParametricLIFNode, surrogate_function=s.ATan(), detach_reset=True)),
            'residual': ('ms_resnet', (3, 32), lambda m, n, s: m.ms_resnet18(num_classes=5))}


@pytest.mark.parametrize('network', NETWORKS)
def test_a_network_of_theirs_runs_on_our_layers(network, monkeypatch):
    name, (C, H), make = NETWORKS[network]
    theirs = peer(f'model.{name}')
    def load(path, full):                                       # their file, in a package whose layers and neurons are ours
        m = types.ModuleType(full)
        m.__package__ = full.rpartition('.')[0]
        monkeypatch.setitem(sys.modules, full, m)
        exec(compile((Path(theirs.__file__).parents[1] / path).read_text(encoding='utf-8'), path, 'exec'), m.__dict__)
        return m
    home = types.ModuleType('stand_in')
    home.layer, home.neuron, home.functional, home.surrogate = layer, neuron, functional, surrogate
    for full, m in dict(stand_in=home, **{'stand_in.model': types.ModuleType('stand_in.model')}).items(): monkeypatch.setitem(sys.modules, full, m)
    home.__path__ = []
    load('_neuron.py', 'stand_in._neuron')
    ours = load(f'model/{name}.py', f'stand_in.model.{name}')
    torch.manual_seed(0)
    a, b = make(theirs, peer('neuron'), peer('surrogate')), make(ours, neuron, surrogate)
    for m in a.modules():                                       # so that every layer fires
        if isinstance(m, nn.modules.batchnorm._BatchNorm): m.bias.data.fill_(.5)
        if isinstance(m, nn.Linear): m.weight.data.abs_().mul_(3)
    b.load_state_dict(a.state_dict())
    x, out = torch.rand(4, 2, C, H, H), []
    for net, f in (a, peer('functional')), (b, functional):
        f.set_step_mode(net, 'm')
        torch.manual_seed(1)                                    # for the dropout
        y = net(x)
        y.square().sum().backward()
        f.reset_net(net)
        out.append((y.detach(), [p.grad for p in net.parameters()]))
    (y, g), (z, h) = out
    top = max(p.abs().max() for p in g)
    assert torch.equal(y, z) and y.any() and top > 0
    assert all((p - q).abs().max() < 1e-4 * top for p, q in zip(g, h, strict=True))


def test_small_functions_of_theirs():
    theirs, x = peer('functional'), torch.randn(6, 3, 4)
    labels, spikes = torch.tensor([2, 0, 1]), (torch.rand(3, 4, 8) < .3).float()
    for d in 0, 1, 4, 6: assert torch.equal(functional.delay(x, d), theirs.delay(x, d))
    assert torch.equal(functional.redundant_one_hot(labels, 3, 4), theirs.redundant_one_hot(labels, 3, 4))
    assert torch.equal(functional.first_spike_index(spikes), theirs.first_spike_index(spikes))
    hot, node, other = F.one_hot(labels, 4).float(), neuron.IFNode(), peer('neuron').IFNode()
    for training in True, False:
        for f, n in (functional, node), (theirs, other): f.set_threshold_margin(n.train(training), hot, 2., .5, 3.)
        assert torch.equal(torch.as_tensor(node.v_threshold), torch.as_tensor(other.v_threshold))
    nets = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(3, 2, 3), nn.Linear(4, 5)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for f, net in zip((functional, theirs), nets): torch.manual_seed(1); f.kaiming_normal_conv_linear_weight(net)
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


def test_memories_as_theirs():
    ours, theirs = base, peer('base')
    a, b = (nn.Sequential(nn.Linear(3, 3), m.LIFNode(), nn.Sequential(m.IFNode())) for m in (neuron, peer('neuron')))
    names = [n for n, _ in theirs.named_memories(b)]
    assert [n for n, _ in ours.named_memories(a) if not n.endswith('v_seq')] == [n for n in names if not n.endswith('v_seq')]
    a(torch.rand(2, 3)); kept = [v.clone() if torch.is_tensor(v) else v for v in ours.extract_memories(a)]
    x = torch.rand(2, 3); want = a(x); functional.reset_net(a); ours.load_memories(a, kept)
    assert torch.equal(a(x), want)
    with pytest.raises(ValueError): ours.load_memories(a, kept[1:])


def test_a_batch_norm_without_statistics_is_refused_as_theirs_does():
    for mods in ('snnbook', 'spikingjelly'):
        f, L = (functional, layer) if mods == 'snnbook' else (peer('functional.conv_bn_fusion'), peer('layer'))
        for C, B in (nn.Conv2d, nn.BatchNorm2d), (L.Conv2d, L.BatchNorm2d):
            with pytest.raises(ValueError): f.fuse_conv_bn_eval_modules(nn.Sequential(C(2, 2, 3), B(2, track_running_stats=False)).eval())


@pytest.mark.parametrize('decode', [None, 'max-mem', 'max-abs-mem', 'mean-mem', 'last_mem'])
@pytest.mark.parametrize('name, args', [('NonSpikingIFNode', ()), ('NonSpikingLIFNode', (3.,))])
def test_neurons_that_never_fire(name, args, decode):
    theirs, x = peer('neuron'), torch.randn(9, 4, 5)
    a, b = (getattr(m, name)(*args, decode=decode) for m in (neuron, theirs))
    for _ in range(2):
        p, q, out = x.clone().requires_grad_(), x.clone().requires_grad_(), []
        for node, z in (a, p), (b, q):
            y = node(z)
            assert isinstance(y, list) == (decode is None)
            y = torch.stack(y) if decode is None else y
            out.append(y); y.square().sum().backward()
        torch.testing.assert_close(*out); torch.testing.assert_close(p.grad, q.grad); torch.testing.assert_close(a.v, b.v)


def test_a_synapse_behind_a_convolution_as_theirs():
    x = torch.randn(5, 2, 3)
    with pytest.warns(UserWarning, match='expects spikes'): y = layer.SynapseFilter(7., step_mode='m')(x)
    torch.testing.assert_close(y, peer('layer').SynapseFilter(7., step_mode='m')(x))
