"Code written for SpikingJelly, with only the import changed: the call forms that people use"
import importlib, math
import pytest, torch
from torch import nn
from snnbook import ann2snn, encoding, functional, layer, monitor, neuron, surrogate


@pytest.mark.parametrize('name', ['base', 'neuron', 'surrogate', 'functional', 'layer', 'encoding', 'monitor', 'learning', 'ann2snn.rules', 'ann2snn.modules',
                                  'ann2snn.factories', 'ann2snn.threshold', 'ann2snn.converter', 'ann2snn.utils', 'layer.container', 'layer.dropout'])
def test_submodules(name): importlib.import_module(f'snnbook.{name}')


def test_positions_of_neurons():
    for node in (neuron.IFNode(1., None, surrogate.ATan(), True, 'm', 'torch', True), neuron.LIFNode(3., False, 1., None, surrogate.ATan(2.), True, 'm', 'torch', True),
                 neuron.ParametricLIFNode(3., True, 1., None, surrogate.ATan(alpha=2.), True, 'm', 'torch', True)):
        assert (node.v_threshold, node.v_reset, node.detach_reset, node.step_mode, node.backend, node.store_v_seq) == (1., None, True, 'm', 'torch', True)
    assert isinstance(neuron.surrogate.ATan(), surrogate.SurrogateFunctionBase)


def test_a_threshold_in_the_place_of_a_flag_is_seen():
    with pytest.raises(TypeError, match='decay_input must be True or False, not 1.0'): neuron.LIFNode(2., 1., 0.)


def test_an_integrator_at_the_end():
    net = nn.Sequential(nn.Linear(3, 2), neuron.LIFNode(v_threshold=math.inf, step_mode='m'))
    net(torch.rand(5, 4, 3))
    net[1].v.sum().backward()
    assert net[1].v.shape == (4, 2) and net[0].weight.grad.isfinite().all() and net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize('make', [lambda m: layer.Linear(4, 3, True, m), lambda m: layer.Flatten(1, -1, m), lambda m: layer.MaxPool2d(2, 2, 0, 1, False, False, m),
                                  lambda m: layer.Conv2d(1, 2, 3, 1, 1, 1, 1, False, 'zeros', m), lambda m: layer.BatchNorm2d(4, 1e-5, .1, True, True, m),
                                  lambda m: layer.GroupNorm(2, 4, 1e-5, True, m), lambda m: layer.Upsample(None, 2, 'nearest', None, None, m)])
def test_the_step_mode_of_a_layer_may_come_last(make): assert [make(m).step_mode for m in 'sm'] == ['s', 'm']


def test_old_twins():
    x = torch.rand(6, 2, 3)
    for name, kwargs in ('IFNode', {}), ('LIFNode', dict(tau=3.)), ('ParametricLIFNode', dict(init_tau=3., detach_reset=True)):
        old, new = getattr(neuron, 'MultiStep' + name)(**kwargs), getattr(neuron, name)(**kwargs, step_mode='m')
        assert isinstance(old, getattr(neuron, name)) and torch.equal(old(x), new(x)) and old.state_dict().keys() == new.state_dict().keys()
    net = nn.Sequential(layer.SeqToANNContainer(nn.Linear(3, 4), nn.BatchNorm1d(4)), neuron.MultiStepIFNode())
    assert net(x).shape == (6, 2, 4)


def test_foreign_backends():
    with pytest.warns(UserWarning, match="no backend 'cupy'"): node = neuron.LIFNode(step_mode='m', backend='cupy')
    with pytest.warns(UserWarning): functional.set_backend(nn.Sequential(node), 'cupy', neuron.LIFNode)
    assert node.backend == 'auto'


class Boxcar(surrogate.SurrogateFunctionBase):
    "A surrogate with a spiking function of its own"
    def __init__(self, alpha=1., spiking=True): super().__init__(alpha, spiking)
    @staticmethod
    def spiking_function(x, alpha): return surrogate.heaviside(x) + (alpha * x).clamp(-.5, .5) - (alpha * x).clamp(-.5, .5).detach()
    @staticmethod
    def primitive_function(x, alpha): return (alpha * x + .5).clamp(0, 1)


@pytest.mark.parametrize('make', [lambda: neuron.LIFNode(surrogate_function=Boxcar()),
                                  lambda: neuron.LIFNode(surrogate_function=lambda x: Boxcar.spiking_function(x, 1.))], ids=['class', 'function'])
def test_a_surrogate_of_ones_own(make):
    x, out = torch.rand(6, 3) * 2, []
    for mode in 'sm':
        node, y = make(), x.clone().requires_grad_()
        node.step_mode = mode
        s = node(y) if mode == 'm' else torch.stack([node(i) for i in y])
        s.sum().backward()
        out += [s.detach(), y.grad]
    assert torch.equal(out[0], out[2]) and set(out[0].unique().tolist()) == {0., 1.} and out[1].abs().sum() > 0
    torch.testing.assert_close(out[1], out[3])


SIGMOID = surrogate.Sigmoid() # a default that all instances share, as older code has it


def test_a_neuron_of_ones_own():
    class Own(neuron.BaseNode):
        def __init__(self, tau=2., v_threshold=1., v_reset=0., surrogate_function=SIGMOID, detach_reset=False, step_mode='s', backend='torch', store_v_seq=False):
            super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, step_mode, backend, store_v_seq)
            self.tau = tau
            self.register_memory('h', 0.)
        @property
        def supported_backends(self): return ('torch',)
        def neuronal_charge(self, x): self.h = .5 * self.h + x; self.v = self.v + (self.h - self.v) / self.tau
        def single_step_forward(self, x):
            self.v_float_to_tensor(x)
            self.neuronal_charge(x)
            spike = self.neuronal_fire()
            self.neuronal_reset(spike)
            return spike
    x, node = torch.rand(8, 2, 3) * 2, Own()
    steps = torch.stack([node(i) for i in x])
    functional.reset_net(node); node.step_mode = 'm'
    assert torch.equal(node(x), steps) and 0 < steps.mean() < 1
    node.reset()
    assert (node.v, node.h) == (0., 0.)


def test_monitors_as_in_the_tutorial():
    net = nn.Sequential(layer.Linear(8, 4), neuron.IFNode(), layer.Linear(4, 2), neuron.IFNode())
    for p in net.parameters(): p.data.abs_()
    functional.set_step_mode(net, 'm')
    for m in net.modules():
        if isinstance(m, neuron.IFNode): m.store_v_seq = True
    spikes, v = monitor.OutputMonitor(net, neuron.IFNode, lambda s: s.mean((1, 2))), monitor.AttributeMonitor('v_seq', pre_forward=False, net=net, instance=neuron.IFNode)
    net(torch.rand(4, 1, 8))
    assert spikes.monitored_layers == ['1', '3'] and len(spikes.records) == 2 and spikes['1'][0].shape == (4,) and v[1].shape == (4, 1, 2)
    spikes.clear_recorded_data(); spikes.close(); v.close()
    functional.reset_net(net); net(torch.rand(4, 1, 8))
    assert spikes.records == [] and spikes.hooks == [] and len(v.records) == 2


def test_encoders_step_by_step():
    x, plan = torch.tensor([0., 1.]), torch.tensor([[1., 0.], [0., 1.], [1., 1.]])
    le, pe = encoding.LatencyEncoder(T=4, enc_function='log'), encoding.PeriodicEncoder(plan)
    assert torch.stack([le(x), le(), le(), le()]).argmax(0).tolist() == [3, 0]
    assert torch.equal(torch.stack([pe(plan), pe(), pe(), pe()]), plan[[0, 1, 2, 0]])
    assert torch.equal(encoding.PoissonEncoder()(x), x)


def test_converters_as_in_the_tutorials():
    net, data = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(8, 1, 4, 4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data, torch.zeros(8)), batch_size=4)
    for converter in (ann2snn.Converter(mode='max', dataloader=loader), ann2snn.Converter(loader, 'cpu', '99.9%', .1, True), ann2snn.Converter(mode=1. / 2, dataloader=loader)):
        snn = converter(net)
        snn.eval().to('cpu')
        for m in snn.modules():
            if hasattr(m, 'reset'): m.reset()
        out = snn(data)
        for _ in range(3): out += snn(data)
        assert out.shape == (8, 3) and 'spiking_0.if_node' in dict(snn.named_modules())


def test_a_module_of_nobody():
    conv = nn.Linear(3, 3)
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.step = [conv]
        def forward(self, x): return torch.relu(self.step[0](x))
    with pytest.raises(ann2snn.ConversionError, match='must be one of the network.s own: make it an attribute'): ann2snn.Converter([torch.rand(2, 3)])(Net())
