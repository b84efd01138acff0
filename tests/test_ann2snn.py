"Conversion: properties, the defects of older converters (A1 to A17) each shown gone, what outside code expects, and the peer"
import copy, itertools, math, pickle, warnings
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import fx, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from snnbook import ann2snn
from snnbook.ann2snn import (ActivationRule, BaseRule, ConversionError, Converter, HookFactory, NeuronFactory, RunningMaxPool, Tally, ThresholdOptimizer,
                             VoltageHook, VoltageScaler)
from snnbook.base import InputError
from snnbook.functional import multi_step_forward, reset_net
from snnbook.neuron import IFNode, LIFNode

torch.set_num_threads(1)
quick = settings(max_examples=40, deadline=None)
torch.manual_seed(0)
LINEAR = nn.Linear(4, 6), nn.BatchNorm1d(6), torch.randn(5, 4)
TRANSPOSED = nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), torch.randn(2, 4, 5, 5)


class Fn(nn.Module):
    "A function between two linear layers"
    def __init__(self, f):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.a, self.b = f, nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x): return self.b(self.f(self.a(x)))


class Conv(nn.Module):
    "Convolution, batch norm, an activation, a pool, a head"
    def __init__(self, act=None, pool=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), act or nn.ReLU(), pool or nn.AvgPool2d(2))
        self.tail = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), pool or nn.AvgPool2d(2))
        self.fc = nn.Linear(32, 5)
        for p in self.body[1].running_var, self.body[1].weight.data, self.body[1].bias.data: p.uniform_(.5, 1.5)

    def forward(self, x): return self.fc(self.tail(self.body(x)).flatten(1))


def vectors(n=32): return torch.rand(n, 6, generator=torch.Generator().manual_seed(1))
def images(n=16): return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
def neurons(net): return [m for m in net.modules() if isinstance(m, IFNode)]
def scalers(net): return [m for m in net.modules() if isinstance(m, VoltageScaler)]


@torch.no_grad()
def mean(snn, x, T):
    reset_net(snn)
    return sum(snn(x) for _ in range(T)) / T


def nmse(y, want): return (((y - want)**2).sum() / (want**2).sum()).item()


# A1: every way to write a ReLU is converted, and nothing else slips through

class Plain(nn.ReLU): pass
class Leaky(nn.ReLU):
    def forward(self, x): return F.leaky_relu(x, .2)

RELUS = [nn.ReLU(), nn.ReLU(inplace=True), Plain(), F.relu, torch.relu, lambda x: x.relu(), lambda x: x.clone().relu_(), lambda x: F.relu(x, inplace=True),
         lambda x: F.relu(input=x), lambda x: torch.relu_(x), lambda x: F.relu_(x)]
OTHERS = [Leaky(), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(), nn.GELU(), nn.SiLU(), nn.ELU(), nn.Sigmoid(), nn.Tanh(), nn.Softmax(1), nn.Hardtanh(), nn.Hardswish(),
          nn.Softplus(), nn.LayerNorm(12), nn.GroupNorm(2, 12), nn.RMSNorm(12), nn.BatchNorm1d(12, track_running_stats=False), F.gelu, F.silu, F.leaky_relu,
          torch.tanh, torch.exp, lambda x: x.sigmoid(), lambda x: x * x, lambda x: x @ x.t() @ x, lambda x: F.relu(x) * torch.sigmoid(x), lambda x: x / (1 + x.abs()),
          lambda x: x.softmax(1), lambda x: F.layer_norm(x, (12,)), lambda x: torch.where(x > 0, x, 0 * x), lambda x: x.clamp(0, 1)]


@pytest.mark.parametrize('f', RELUS, ids=lambda f: getattr(f, '__name__', type(f).__name__))
def test_a1_every_relu(f):
    net, x = Fn(f).eval(), vectors()
    snn = Converter([x])(net)
    assert len(neurons(snn)) == 1 and not any(isinstance(m, nn.ReLU) for m in snn.modules())
    assert nmse(mean(snn, x, 256), net(x).detach()) < 1e-3


@pytest.mark.parametrize('f', OTHERS, ids=lambda f: getattr(f, '__name__', type(f).__name__))
def test_a1_nothing_else(f):
    net, x = Fn(f).eval(), vectors()
    with pytest.raises(ConversionError, match='cannot be converted'): Converter([x])(net)
    with pytest.warns(UserWarning, match='cannot be converted'): Converter([x], strict=False)(net)


def test_a1_the_error_says_where():
    with pytest.raises(ConversionError) as e: Converter([vectors()])(Fn(lambda x: F.gelu(x)))
    assert 'function gelu()' in str(e.value) and f'{__file__}:' in str(e.value) and 'class MyRule(BaseRule)' in str(e.value)


def test_a_rule_of_ones_own_is_enough():
    class Cap(nn.Module):
        def forward(self, x): return x.clamp(0, 1)
    class CapRule(BaseRule):
        patterns = (Cap,)
    class One(ThresholdOptimizer):
        def compute_threshold(self, hook): return 1.
    net, x = Fn(Cap()).eval(), vectors()
    snn = Converter([x], rules=[CapRule()], threshold_optimizer=One())(net)   # an IF neuron of scale 1 is a ReLU cut off at 1
    assert len(neurons(snn)) == 1 and nmse(mean(snn, x, 512), net(x).detach()) < 1e-3


# A2, A3, A4: the user's network

def snapshot(net):
    return ({k: (v.clone(), v.data_ptr(), v.device, v.dtype) for k, v in itertools.chain(net.named_parameters(), net.named_buffers())},
            {n: (m.training, type(m), len(m._forward_hooks)) for n, m in net.named_modules()}, {n: p.requires_grad for n, p in net.named_parameters()})


def same(a, b): return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(x[0], y[0]) and x[1:] == y[1:] for x, y in zip(a[0].values(), b[0].values()))


def test_a2_a3_a4_the_network_is_untouched():
    net, x, fired = Conv(nn.ReLU(inplace=True)).train(), images(), []
    net.body[0].eval(); net.fc.weight.requires_grad_(False)
    net.body[2].register_forward_hook(lambda *a: fired.append(1))
    before, rng = snapshot(net), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        snn = Converter(DataLoader(TensorDataset(x, torch.zeros(16)), 4, shuffle=True), mode='99%')(net)
        assert same(before, snapshot(net)) and torch.equal(rng, torch.get_rng_state()) and not fired
        for kw in dict(device='meta'), dict(mode=.5, rules=[]):
            try: Converter([x], **kw)(net)
            except ConversionError: pass
        for loader in [], [x.double()], [x * math.nan]:
            with pytest.raises(InputError): Converter(loader)(net)
    assert same(before, snapshot(net)) and torch.equal(rng, torch.get_rng_state()) and not fired
    mine = {p.data_ptr() for p in itertools.chain(net.parameters(), net.buffers())}
    assert mine.isdisjoint(t.data_ptr() for t in itertools.chain(snn.parameters(), snn.buffers()))
    assert not any(m.training for m in snn.modules())


# A5: a maximum is a maximum

@quick
@given(st.lists(st.floats(2**-10, 100, width=32), min_size=1, max_size=6), st.randoms())
def test_a5_the_order_of_batches_does_not_matter(maxima, random):
    batches = [torch.tensor([[0., m / 2, m]]) for m in maxima]
    turned = random.sample(batches, len(batches))
    for mode in 'max', '50%', '99.9%', .5:
        a, b = (Converter(bs, mode=mode)(nn.Sequential(nn.ReLU())).spiking_0.scaler1.scale for bs in (batches, turned))
        assert torch.equal(a, b)
        if mode == 'max': assert a == max(b.max() for b in batches)


def test_a5_a_number_is_the_classic_average():
    batches = [torch.tensor([[m]]) for m in (.1, 5., .1, .1)]
    scale = lambda bs: Converter(bs, momentum=.1)(nn.Sequential(nn.ReLU())).spiking_0.scaler1.scale.item()
    assert scale(batches) == pytest.approx(.497, abs=1e-3) and scale([batches[1], batches[0], *batches[2:]]) == pytest.approx(3.672, abs=1e-3)


# A6, A8, A9, A10: data and modes

def test_a6_no_data():
    used = (x for x in [vectors()])
    list(used)
    for loader in [], used, DataLoader(TensorDataset(torch.zeros(0, 6))):
        with pytest.raises(InputError, match='gave no batch'): Converter(loader)(Fn(F.relu))
    with pytest.raises(InputError, match='single samples'): Converter(TensorDataset(vectors()))(Fn(F.relu))
    a, b = (Converter(loader)(Fn(F.relu)).state_dict() for loader in (vectors(), [vectors()])) # a bare tensor is one batch
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a if isinstance(a[k], torch.Tensor))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('mode', ['max', '99%', .9])
def test_a8_dtypes(dtype, mode):
    net, x = Fn(nn.ReLU()).to(dtype).eval(), vectors().to(dtype)
    snn = Converter([x], mode=mode)(net)
    assert snn(x).dtype == dtype and nmse(mean(snn, x, 128).double(), net(x).detach().double()) < .05


def test_a8_token_ids_and_a9_no_parameters():
    net = nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    ids = torch.randint(0, 11, (20, 5))
    assert nmse(mean(Converter([(ids, None)])(net), ids, 256), net(ids).detach()) < 1e-3
    assert len(neurons(Converter([vectors()])(nn.Sequential(nn.Flatten(), nn.ReLU())))) == 1


@pytest.mark.parametrize('mode', ['', 'mean', '101%', '0%', '%', 0, 0., 1.5, -1., True, None, [1]])
def test_a10_wrong_modes(mode):
    for make in lambda: Converter([], mode=mode), lambda: VoltageHook(mode=mode), lambda: HookFactory(mode=mode):
        with pytest.raises(InputError, match="'max'.*'99.9%'.*fraction of the maximum"): make()
        with pytest.raises(NotImplementedError): make()


def test_a10_right_modes():
    for mode in 'max', 'Max', 'MAX', '99.9%', '100%', 1, 1., .3, np.float32(.5): Converter([vectors()], mode=mode)(Fn(F.relu))


# A7: percentiles of a stream

@quick
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), min_size=1, max_size=5), st.floats(0, 1), st.sampled_from([1, 10**6]))
def test_a7_tally_is_numpys_quantile(batches, q, keep):
    t = Tally(keep)
    for b in batches: t.add(torch.tensor(b))
    x = np.concatenate([np.float32(b) for b in batches]).astype(float)
    i = q * (len(x) - 1)
    lo, hi = np.sort(x)[[int(i), min(int(i) + 1, len(x) - 1)]]                # an error of 2**-8 of either neighbour
    slack = 2**-8 * max(abs(lo), abs(hi)) if keep == 1 else 1e-5 * max(abs(lo), abs(hi))
    assert abs(float(t.quantile(q)) - np.quantile(x, q)) <= slack + 1e-30
    assert (t.count, float(t.min), float(t.max)) == (len(x), x.min(), x.max())


def test_a7_more_elements_than_torch_quantile_takes():
    x = torch.arange(17 * 2**20, dtype=torch.float32).div_(2**20)
    with pytest.raises(RuntimeError): torch.quantile(x, .999)
    for momentum, eps in (None, 2**-8), (.1, 1e-6):
        hook = VoltageHook(mode='99.9%', momentum=momentum)
        hook(x)
        assert float(hook.scale) == pytest.approx(17 * .999, rel=eps)


# A11: max-pooling

POOLS = [nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2), lambda x: torch.max_pool2d(x, 2, 2), lambda x: F.adaptive_max_pool2d(x, x.shape[-1] // 2)]


@pytest.mark.parametrize('pool', POOLS, ids=range(4))
def test_a11_the_error_falls_with_time(pool):
    class Pool(nn.Module):
        def forward(self, x): return pool(x)
    net, x = Conv(pool=pool if isinstance(pool, nn.Module) else Pool()).eval(), images()
    snn, want = Converter([x])(net), net(x).detach()
    errors = [nmse(mean(snn, x, T), want) for T in (8, 32, 128, 512)]
    assert all(b < a / 4 for a, b in zip(errors, errors[1:])) and errors[-1] < 1e-4
    assert sum(isinstance(m, RunningMaxPool) for m in snn.modules()) == 2


# A12: half a threshold

def test_a12_half_a_threshold_halves_the_error():
    net, x = Conv().eval(), images()
    want = net(x).detach()
    plain, half = (Converter([x], neuron_factory=NeuronFactory(v_init=v))(net) for v in (0., .5))
    for T in 8, 32, 128: assert nmse(mean(half, x, T), want) < .5 * nmse(mean(plain, x, T), want)
    assert all(n.v_threshold == 1. for n in neurons(half))


# A13: odd inputs, and state that is kept

def test_a13_hook():
    hook = VoltageHook(momentum=.5)
    for x in torch.tensor(4.), torch.zeros(0, 3), torch.full((7, 2), 2.): hook(x)
    assert hook.scale == 3. and hook.num_batches_tracked == 2
    twin = VoltageHook(momentum=.5)
    twin.load_state_dict(hook.state_dict())
    assert hook(torch.ones(1)) is not None and twin(torch.ones(1)) is not None and twin.scale == hook.scale == 2.


# A14: a silent layer

def test_a14_a_silent_layer_is_converted():
    net, x = Fn(nn.ReLU()).eval(), vectors()
    net.a.bias.data.fill_(-100)
    with pytest.warns(UserWarning, match="layer 'f' .*its threshold is set to 1"): snn = Converter([x])(net)
    torch.testing.assert_close(mean(snn, x, 16), net(x).detach())


@pytest.mark.parametrize('s', [0., -1., math.nan, math.inf])
def test_a14_an_unusable_threshold_is_an_error(s):
    class Fixed:
        def compute_threshold(self, hook): return s
    with pytest.raises(ValueError, match="finite positive number, got .* for hook 'voltage_hook_0'"): Converter([vectors()], threshold_optimizer=Fixed())(Fn(nn.ReLU()))


# A15: folding

@pytest.mark.parametrize('layer,bn,x', [LINEAR, TRANSPOSED], ids=['linear', 'transposed'])
def test_a15_linear_and_transposed(layer, bn, x):
    bn.running_mean.uniform_(); bn.running_var.uniform_(.5, 2)
    net = nn.Sequential(layer, bn, nn.ReLU()).eval()
    for fuse_flag in True, False:
        snn = Converter([x], fuse_flag=fuse_flag)(net)
        assert any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in snn.modules()) is not fuse_flag
        assert nmse(mean(snn, x, 256), net(x).detach()) < 1e-3


def test_a15_a_conv_used_twice_is_left_alone():
    class Twice(nn.Module):
        def __init__(self): super().__init__(); torch.manual_seed(0); self.c, self.bn = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3); self.bn.running_mean.fill_(.3)
        def forward(self, x): return self.c(F.relu(self.bn(self.c(x))))
    net, x = Twice().eval(), torch.rand(4, 3, 5)
    assert nmse(mean(Converter([x])(net), x, 512), net(x).detach()) < 1e-4


# A16, A17: nothing patched, nothing printed

def test_a16_torch_is_not_patched():
    before = {n: getattr(ns, n) for ns in (torch, F) for n in dir(ns) if callable(getattr(ns, n))}
    Converter([images()])(Conv(pool=nn.MaxPool2d(2)))
    assert all(before[n] is getattr(torch if hasattr(torch, n) and getattr(torch, n) is before[n] else F, n) for n in before)


def test_a17_silence(capsys):
    Converter([images()] * 3)(Conv())
    out = capsys.readouterr()
    assert out.out == out.err == ''


# what outside code expects

def test_names():
    assert set(ann2snn.__all__) == {'Converter', 'HookFactory', 'NeuronFactory', 'ReLURule', 'ThresholdOptimizer', 'download_url'}
    snn = Converter([images()])(Conv())
    assert [n for n, m in snn.named_modules() if isinstance(m, IFNode)] == ['body.spiking_0.if_node', 'tail.spiking_0.if_node']
    assert 'tail.spiking_0.scaler1' in dict(snn.named_modules()) and not any('hook' in n for n, _ in snn.named_modules())
    assert isinstance(snn, fx.GraphModule) and isinstance(Converter([]), nn.Module)


def test_static_steps():
    net, x = Conv().eval(), images()
    gm = Converter.fuse(fx.symbolic_trace(net))
    torch.testing.assert_close(gm(x), net(x))
    gm = Converter.set_voltagehook(gm, mode='99.9%', momentum=.2)
    hooks = [m for m in gm.modules() if isinstance(m, VoltageHook)]
    assert [(h.mode, h.momentum) for h in hooks] == [('99.9%', .2)] * 2
    gm(x)
    with pytest.warns(DeprecationWarning, match='replace_by_ifnode is deprecated'): snn = Converter.replace_by_ifnode(gm)
    assert len(neurons(snn)) == 2 and len(scalers(snn)) == 4 and not any(m.training for m in snn.modules())


def test_an_empty_list_of_rules_converts_nothing():
    with pytest.warns(UserWarning, match='no rules'): snn = Converter([images()], rules=[])(Conv())
    assert not neurons(snn) and sum(isinstance(m, nn.ReLU) for m in snn.modules()) == 2


class Duck:
    "A rule by its methods alone: replaces Identity by a scaler of what was seen"
    def __init__(self): self.calls = []
    def match(self, node, modules): return node.op == 'call_module' and type(modules[node.target]) is nn.Identity
    def insert_hooks(self, fx_model, node, hook_factory, counts):
        self.calls.append('insert')
        fx_model.add_submodule('watch', hook_factory.create())
        with fx_model.graph.inserting_after(node): return fx_model.graph.call_module('watch', (node,))
    def find_replacements(self, fx_model, modules):
        self.calls.append('find')
        for n in fx_model.graph.nodes:
            if n.target == 'watch': yield n.args[0], n; yield n.args[0], object()
    def replace_with_neurons(self, fx_model, activation_node, hook_node, neuron_factory, threshold_optimizer):
        self.calls.append(threshold_optimizer.compute_threshold(fx_model.get_submodule('watch')))
        activation_node.replace_all_uses_with(activation_node.args[0])
        fx_model.graph.erase_node(hook_node); fx_model.graph.erase_node(activation_node)


def test_a_duck_is_a_rule():
    rule, net, x = Duck(), Fn(nn.Identity()).eval(), vectors()
    assert isinstance(rule, ActivationRule)
    snn = Converter([x], rules=[rule])(net)
    assert rule.calls == ['insert', 'find', pytest.approx(net.a(x).max().item())]
    assert torch.equal(snn(x), net(x))
    with pytest.raises(TypeError, match="lacks .*'insert_hooks'"): Converter([], rules=[nn.ReLU()])


def test_thresholds_and_factories():
    class Two:
        def compute_threshold(self, hook): return 2.
    class Tensors(NeuronFactory):
        def create(self, scale): n = super().create(scale); n.v_threshold = torch.tensor(.5); return n
    snn = Converter([vectors()], threshold_optimizer=Two(), neuron_factory=Tensors())(Fn(nn.ReLU()))
    assert [s.scale.item() for s in scalers(snn)] == [.25, 2.]
    assert isinstance(NeuronFactory(neuron_type=LIFNode, tau=3.).create(scale=1.), LIFNode)


def test_one_scale_a_channel():
    class PerChannel(ThresholdOptimizer):
        def compute_threshold(self, hook): return torch.linspace(1, 3, 12)
    net, x = Fn(nn.ReLU()).eval(), vectors()
    assert nmse(mean(Converter([x], threshold_optimizer=PerChannel())(net), x, 512), net(x).detach()) < 1e-3


def test_the_result_among_pytorchs_tools():
    net, x = Conv(pool=nn.MaxPool2d(2)).eval(), images()
    snn = Converter([x])(net)
    want = mean(snn, x, 5)
    for other in copy.deepcopy(snn), pickle.loads(pickle.dumps(snn)): torch.testing.assert_close(mean(other, x, 5), want)
    other = Converter([x * 2])(net)
    other.load_state_dict(snn.state_dict())
    torch.testing.assert_close(mean(other, x, 5), want)
    reset_net(snn)
    torch.testing.assert_close(multi_step_forward(x.expand(5, *x.shape), snn).mean(0), want)
    reset_net(snn); snn(x)
    with pytest.raises(RuntimeError, match='reset_net'): snn(x[:3])
    assert mean(snn.double(), x.double(), 2).dtype == torch.float64


def test_networks_with_branches():
    class Net(nn.Module):
        def __init__(self):
            super().__init__(); torch.manual_seed(0)
            self.c = nn.ModuleList([nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(6, 2, 3)])
            self.relu, self.drop, self.register = nn.ReLU(inplace=True), nn.Dropout2d(), self.register_buffer('mask', torch.rand(6, 1, 1))
        def forward(self, x, flag=None):
            if flag: x = -x
            a = self.relu(self.c[0](x - .5))
            b = self.relu(self.c[1](a) + a)
            y = torch.cat([a, self.drop(b)], 1) * self.mask
            return F.interpolate(self.relu(self.c[2](y)), scale_factor=2).mean((2, 3)) / 3
    net, x = Net().eval(), images()
    snn = Converter([x])(net)
    assert len(neurons(snn)) == 3 and nmse(mean(snn, x, 512), net(x).detach()) < 1e-4


@quick
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 8, 50]), st.sampled_from([0., .5]))
def test_one_layer_is_a_staircase(seed, T, v0):
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(seed)).double()
    snn = Converter([x], neuron_factory=NeuronFactory(v_init=v0))(nn.Sequential(nn.ReLU()))
    s, y = x.max().clamp(min=0), mean(snn, x, T)
    assert (y - x.relu()).abs().max() <= s / T * (1 - v0) * (1 + 1e-9) + 1e-12
    assert torch.allclose((y * T / s).round(), y * T / s, atol=1e-6)


# the peer

@pytest.mark.parametrize('mode', ['Max', '99%', .5])
def test_spikingjelly_hook(mode):
    theirs = pytest.importorskip('spikingjelly.activation_based.ann2snn', reason='needs the peer spikingjelly').modules.VoltageHook(mode=mode).train()
    ours = VoltageHook(mode=mode)
    for x in torch.randn(5, 64, 20).relu():
        ours(x), theirs(x)
        assert float(ours.scale) == pytest.approx(float(theirs.scale), rel=1e-5)


def test_spikingjelly_conversion():
    sj = pytest.importorskip('spikingjelly.activation_based.ann2snn', reason='needs the peer spikingjelly')
    net, x = Conv().eval(), images()
    theirs = sj.Converter(sj.RateCodingRecipe([(x, None)], mode='Max')).convert(copy.deepcopy(net))
    ours = Converter([x], mode='Max', neuron_factory=NeuronFactory())(net)     # the peer starts at zero
    for m in theirs.modules(): hasattr(m, 'reset') and m.reset()
    with torch.no_grad(): y = sum(theirs(x) for _ in range(32)) / 32
    torch.testing.assert_close(mean(ours, x, 32), y, atol=2e-2, rtol=1e-2)   # folds round differently, and a spike may move by a step


def test_compiled_networks_and_missing_devices_are_refused_in_words():
    net, loader = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), [torch.rand(8, 4)]
    for compiled in torch.compile(net), torch.jit.trace(net, loader[0]):
        for kw in {}, dict(preset='multi'):
            with pytest.raises(ConversionError, match='before it was compiled'): Converter(loader, **kw)(compiled)
    if not torch.cuda.is_available():
        with pytest.raises(ConversionError, match="cannot be moved to the device 'cuda'"): Converter(loader, device='cuda')(net)


def test_wrappers_around_a_network_are_taken_off():
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.rand(8, 4)
    for wrapped in nn.DataParallel(net), torch.optim.swa_utils.AveragedModel(net):
        for kw in {}, dict(preset='annealed'): assert torch.equal(Converter([x], **kw)(wrapped).run(x, 4), Converter([x], **kw)(net).run(x, 4))


def test_a_long_line_of_source_is_cut_in_messages():
    f = lambda x: x.tanh()  # a comment that is long, and longer, and longer still, and goes on and on, until nobody would want to see all of it in a message
    with pytest.raises(ConversionError) as e: Converter([torch.rand(8, 6)])(Fn(f))
    assert '...' in str(e.value) and 'want to see all' not in str(e.value)


@pytest.mark.parametrize('preset', [None, 'binary', 'signed', 'annealed', 'multi'])
def test_views_of_images_and_of_the_answer_work(preset):
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.conv, self.act, self.fc, self.side = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(8 * 64, 10), nn.Conv2d(8, 2, 3)
        def forward(self, x): y = self.act(self.conv(x)); return self.fc(y.view(x.size(0), -1)), self.side(y)
    torch.manual_seed(0)
    ann, x = Net().eval(), torch.rand(6, 3, 8, 8)
    snn = Converter([x], **({} if preset is None else {'preset': preset}))(ann)
    for i, y in enumerate(snn.run(x, 8)):
        want = ann(x)[i].detach()
        assert ((y.view(6, -1) - want.view(6, -1)) ** 2).mean() < .1 * (want ** 2).mean()
    for y in snn(x): y.view(6, -1)
