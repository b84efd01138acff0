"Presets: every operator is right or refused by name, the network is untouched, a run cannot be corrupted, and architectures of torchvision"
import itertools, sys
import pytest, torch
from torch import nn
from torch.nn import functional as F
from snnbook.ann2snn import (BaseRule, CodedNeuron, ConversionError, Converter, DeltaCode, LeastSquares, RateCode, SignedIF, SpikingGraph)
from snnbook.ann2snn.bench import NETS
from snnbook.ann2snn.presets import PRESETS, nmse
from snnbook.base import InputError

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings('ignore')


class Vector(nn.Module):
    def __init__(self, f):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.a, self.b = f, nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x): return self.b(self.f(self.a(x)))


class Image(nn.Module):
    def __init__(self, f):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.a, self.b = f, nn.Conv2d(1, 4, 3, padding=1), nn.LazyLinear(4)

    def forward(self, x): return self.b(self.f(self.a(x).relu()).flatten(1))


class Plain(nn.ReLU): pass
class Leaky(nn.ReLU):
    def forward(self, x): return F.leaky_relu(x, .2)


def vectors(n=64): return torch.rand(n, 6, generator=torch.Generator().manual_seed(1))
def images(n=24): return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


VECTORS = {
    'F.relu': F.relu, 'torch.relu': torch.relu, '.relu': lambda x: x.relu(), 'clamp min': lambda x: x.clamp(min=0),
    'maximum': lambda x: torch.maximum(x, torch.zeros_like(x)),
    'in place': nn.ReLU(inplace=True), 'subclass': Plain(), 'other forward': Leaky(), 'ReLU6': nn.ReLU6(), 'LeakyReLU': nn.LeakyReLU(),
    'PReLU': nn.PReLU(), 'PReLU 12': nn.PReLU(12),
    'GELU': nn.GELU(), 'SiLU': nn.SiLU(), 'Sigmoid': nn.Sigmoid(), 'Tanh': nn.Tanh(), 'Hardtanh': nn.Hardtanh(), 'ELU': nn.ELU(),
    'Hardswish': nn.Hardswish(), 'Softmax': nn.Softmax(1),
    'LayerNorm': nn.LayerNorm(12), 'GroupNorm': nn.GroupNorm(2, 12), 'RMSNorm': nn.RMSNorm(12), 'a*a': lambda x: x * x,
    'gate': lambda x: F.relu(x) * torch.sigmoid(x), 'a/b': lambda x: x / (1 + x.abs()),
    'x**2': lambda x: x**2, 'constants': lambda x: 1 - F.relu(x + .5) / 2, 'log_softmax': lambda x: F.log_softmax(x, 1),
    'dropout': nn.Sequential(nn.ReLU(), nn.Dropout(inplace=True)),
    'normalize': lambda x: F.normalize(x), 'std': lambda x: x / x.std(1, keepdim=True), 'twice': lambda x: F.relu(F.relu(x) - .3)}
IMAGES = {
    'max_pool2d': lambda x: F.max_pool2d(x, 2), 'AdaptiveMaxPool2d': nn.AdaptiveMaxPool2d(2), 'avg_pool2d': lambda x: F.avg_pool2d(x, 2),
    'adaptive': lambda x: F.adaptive_avg_pool2d(x, 2),
    'LPPool2d': nn.LPPool2d(2, 2), 'interpolate': lambda x: F.interpolate(x, scale_factor=2),
    'squeeze and excite': lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    'InstanceNorm2d': nn.InstanceNorm2d(4, affine=True), 'pad': nn.ConstantPad2d(1, .3), 'cat': lambda x: torch.cat([x, x * 0 + 1], 1),
    'BatchNorm': nn.BatchNorm2d(4)}
REFUSED = {'argsort': lambda x: x.argsort(1).float(), 'select': lambda x: x[x > 0].sum(), 'cumprod': lambda x: x.cumprod(1),
    'sort': lambda x: x.sort(1).values, 'index': lambda x: x.max(1)[1][:, None] * x, 'count': lambda x: (x > 0).float(), 'LSTM': nn.LSTM(12, 8)}


@pytest.mark.parametrize('name', [*VECTORS, *IMAGES])
def test_every_operator(name):
    net, x = (Vector(VECTORS[name]), vectors()) if name in VECTORS else (Image(IMAGES[name]), images())
    net(x); net.eval()
    want = net(x).detach()
    for preset, few, many in ('multi', 2, 8), ('annealed', 3, 14), ('signed', 4, 32), ('binary', 4, 64):
        a, b = (nmse(Converter([x], preset=preset, T=T)(net).run(x), want) for T in (few, many))
        assert b < a / 2 and b < 4e-3, (preset, a, b)


class Sequence(nn.Module):
    "A transformer's pieces, with an input for a mask where one is needed"
    def __init__(self, f, **modules):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.a, self.b = f, nn.Linear(3, 8), nn.LazyLinear(4)
        for k, make in modules.items(): setattr(self, k, make())

    def forward(self, x): return self.b(self.f(self, self.a(x)).mean(1))


class Masked(Sequence):
    def forward(self, x, mask): return self.b(self.f(self, self.a(x), mask).mean(1))


def values(x): v, _ = x.max(1); return v
def layer(**kw): return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **kw)
def attention(): return nn.MultiheadAttention(8, 2, batch_first=True)
def causal(n=5): return torch.triu(torch.ones(n, n, dtype=torch.bool), 1)


def both(s, x): y, w = s.m(x, x, x); return y + w.mean(2, keepdim=True)


SEQUENCES = {
    'encoder': (lambda s, x: s.m(x), dict(m=lambda: nn.TransformerEncoder(layer(norm_first=True), 2, enable_nested_tensor=False))),
    'encoder, mask': (lambda s, x: s.m(x, mask=causal()), dict(m=lambda: nn.TransformerEncoder(layer(), 2))),
    'decoder': (lambda s, x: s.m(x, x), dict(m=lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True))),
    'weights': (both, dict(m=attention)), 'sdpa': (lambda s, x: F.scaled_dot_product_attention(x, x, x, is_causal=True), {}),
    'leaky where': (lambda s, x: torch.where(x > 0, x, .1 * x), {}), 'step times x': (lambda s, x: x * (x > 0), {}),
    'masked_fill': (lambda s, x: x.masked_fill(x < .1, .1), {}),
    'max': (lambda s, x: x - x.max(-1, keepdim=True)[0], {}), 'two maxima': (lambda s, x: values(x)[:, None] + torch.max(x, 1 - x), {}),
    'pool': (lambda s, x: F.max_pool1d(x, 2, return_indices=True)[0], {}),
    'one number a sample': (lambda s, x: (x * F.cosine_similarity(x.flatten(1), x.relu().flatten(1))[:, None, None]), {}),
    'lerp': (lambda s, x: torch.lerp(x, x.relu(), .3), {})}
MASKED = {
    'key padding': (lambda s, x, m: s.m(x, x, x, key_padding_mask=m)[0], dict(m=attention)),
    'encoder': (lambda s, x, m: s.m(x, src_key_padding_mask=m), dict(m=lambda: nn.TransformerEncoder(layer(), 1))),
    'softmax': (lambda s, x, m: (x @ x.mT).masked_fill(m[:, None], -torch.inf).softmax(-1) @ x, {}), 'where': (lambda s, x, m: torch.where(m[..., None], x.relu(), x), {})}


@pytest.mark.parametrize('name', [*SEQUENCES, *(f'mask: {n}' for n in MASKED)])
def test_every_spelling(name):
    x = torch.rand(24, 5, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(24, 5, generator=torch.Generator().manual_seed(2)) < .3
    mask[:, 0] = False
    f, modules = MASKED[name[6:]] if name.startswith('mask: ') else SEQUENCES[name]
    net, x = (Masked(f, **modules), (x, mask)) if name.startswith('mask: ') else (Sequence(f, **modules), (x,))
    net(*x); net.eval()
    with torch.no_grad(): want = net(*x)
    for preset, few, many in ('multi', 2, 8), ('signed', 4, 64):
        ys = Converter([x], preset=preset, T=many)(net).run(x, many, all_steps=True)
        a, b = nmse(ys[few - 1], want), nmse(ys[-1], want)
        assert b < a / 2 and b < 1e-3 or b < 1e-10, (preset, a, b)


def test_a_wrong_input_names_the_layer():
    net = Image(IMAGES['avg_pool2d'])
    net(images())
    snn, x = Converter([images()], preset='signed', T=4)(net.eval()), images()
    said = r"layer 'a' \(Conv2d\) expects \[N, 1, H, W\], but its input has shape \(24, 3, 8, 8\).*calibrated with an input of shape \[N, 1, 8, 8\]"
    with pytest.raises(InputError, match=said): snn.run(x.repeat(1, 3, 1, 1))
    with pytest.raises(InputError, match='takes 1 inputs'): snn.run((x, x))
    with pytest.raises(InputError, match=r"layer 'b' \(Linear\) expects \[N, \*, 64\]"): snn.run(x[:, :, :4])
    assert snn.run(x).shape == (24, 4)                          # and nothing is left over


def test_an_image_of_another_size_may_follow_a_calibrated_start():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    snn, x = Converter([images()], preset='binary', T=64)(net), torch.rand(5, 1, 12, 12)
    with torch.no_grad(): assert nmse(snn.run(x), net(x)) < 1e-2


def test_what_was_made_shares_nothing_with_what_it_was_made_of():
    x = vectors()
    snn = Converter([x], preset='multi')(Vector(nn.LayerNorm(12)).eval())
    mine = {t.data_ptr() for t in itertools.chain(snn.parameters(), snn.buffers())}
    assert mine.isdisjoint(t.data_ptr() for t in itertools.chain(snn.made.ann[0].parameters(), snn.made.ann[0].buffers()))


@pytest.mark.parametrize('name', REFUSED)
def test_refused_by_name(name):
    with pytest.raises(ConversionError, match='cannot be converted|cannot follow'): Converter([vectors()], preset='multi')(Vector(REFUSED[name]).eval())


def test_a_fallback_is_listed():
    net, x = Vector(lambda x: x.cumprod(1)).eval(), vectors()
    snn = Converter([x], preset='multi', T=8, fallback=True)(net)
    assert nmse(snn.run(x), net(x).detach()) < 1e-4 and 'cumprod' in str(snn.report().whole['operators that do not spike'])


@pytest.mark.parametrize('preset', [*PRESETS])
def test_the_network_is_untouched(preset):
    net, x = NETS['resnet'][0]().train(), torch.rand(16, 1, 16, 16)
    net[0].weight.requires_grad_(False); net[1].eval()
    state = lambda: ({k: v.clone() for k, v in net.state_dict().items()}, [(m.training, len(m._forward_hooks)) for m in net.modules()],
    [p.requires_grad for p in net.parameters()])
    before, rng = state(), torch.get_rng_state()
    snn = Converter([x], preset=preset, T=2)(net)
    after = state()
    assert before[1:] == after[1:] and all(torch.equal(before[0][k], after[0][k]) for k in before[0]) and torch.equal(rng, torch.get_rng_state())
    mine = {t.data_ptr() for t in itertools.chain(net.parameters(), net.buffers())}
    assert mine.isdisjoint(t.data_ptr() for t in itertools.chain(snn.parameters(), snn.buffers()))


@pytest.mark.parametrize('preset', ['binary', 'signed', 'annealed', 'multi'])
def test_a_run_cannot_be_corrupted(preset):
    net, x = Image(IMAGES['max_pool2d']), images()
    net(x); net.eval()
    snn = Converter([x], preset=preset, T=4)(net)
    y = snn.run(x)
    snn(x); snn(x)                                              # two steps, and nobody resets
    torch.testing.assert_close(snn.run(x[:5]), y[:5])
    torch.testing.assert_close(snn.run(x, 4, all_steps=True)[-1], y)
    assert snn.run(x, 3, all_steps=True).shape == (3, *y.shape)


def test_parts_of_ones_own():
    class Cap(nn.Module):
        def forward(self, x): return x.clamp(-.2, .7)
    class CapRule(BaseRule): patterns = (Cap,)
    net, x = Vector(Cap()).eval(), vectors()
    assert nmse(Converter([x], preset='signed', T=64, rules=[CapRule()])(net).run(x), net(x).detach()) < 1e-3
    class Doubled(LeastSquares):
        def choose(self, seen): return 2 * seen.max
    snn = Converter([x], preset='annealed', T=8, threshold=Doubled(8), neuron=SignedIF, code=DeltaCode(), post=())(Vector(F.relu).eval())
    assert isinstance(snn, SpikingGraph) and snn.code.once and sum(isinstance(m, SignedIF) for m in snn.modules()) == 1
    assert isinstance(Converter([x], preset='multi', code=RateCode())(Vector(F.relu).eval()).code, RateCode)
    for bad in dict(preset='x'), dict(threshold='mse'), dict(preset='multi', T=0), dict(fallback=True):
        with pytest.raises(InputError): Converter([x], **bad)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    net, x = Vector(F.relu).eval().to(dtype), vectors().to(dtype)
    y = Converter([x], preset='annealed', T=8)(net).run(x)
    assert y.dtype == dtype and nmse(y, net(x).detach()) < 1e-2


def test_conversion_is_cheap_in_memory():
    net, x = NETS['cnn'][0]().eval(), torch.rand(64, 1, 16, 16)
    snn = Converter([x], preset='signed', T=4)(net)
    state = lambda: sum(v.numel() for m in snn.modules() if isinstance(m, CodedNeuron) for v in m.memories() if isinstance(v, torch.Tensor))
    for T in 2, 6:
        for _ in range(T): snn(x)
        assert state() == 2 * sum(m.v.numel() for m in snn.modules() if isinstance(m, CodedNeuron))
        for m in snn.modules(): hasattr(m, 'reset') and m.reset()


# architectures, where torchvision is installed

ARCHITECTURES = [('resnet18', {}), ('vgg11_bn', {}), ('alexnet', {}), ('squeezenet1_1', {}), ('mobilenet_v2', {}), ('densenet121', {}), ('googlenet',
    dict(init_weights=False, aux_logits=False)),
                 ('shufflenet_v2_x0_5', {}), ('regnet_y_400mf', {}), ('mnasnet0_5', {}), ('efficientnet_b0', {}), ('convnext_tiny', {}), ('vit_b_16',
                 dict(image_size=32)), ('swin_t', {})]


def torchvision_models():
    "The networks only: where torchvision's own operators were built for another torch, names for them are enough, since no network here calls one"
    for name in None, 'nms', 'qnms':
        if name: torch.library.define(f'torchvision::{name}', '(Tensor x) -> Tensor')
        try: return pytest.importorskip('torchvision.models', reason='needs torchvision', exc_type=ImportError)
        except RuntimeError as e:
            if 'does not exist' not in str(e): raise
            for k in [k for k in sys.modules if k.startswith('torchvision')]: del sys.modules[k]
    pytest.skip('this torchvision does not fit this torch')


@pytest.mark.parametrize('name,kwargs', ARCHITECTURES, ids=lambda v: v if isinstance(v, str) else '')
def test_architectures(name, kwargs):
    torch.manual_seed(0)
    net, x = getattr(torchvision_models(), name)(weights=None, **kwargs).eval(), torch.rand(4, 3, kwargs.get('image_size', 64), kwargs.get('image_size', 64))
    for m in net.modules():                                     # some heads start at zero
        if isinstance(m, nn.Linear) and not m.weight.any(): nn.init.normal_(m.weight)
    with torch.no_grad(): want = net(x)
    snn = Converter([x], preset='multi', T=4, fallback=name == 'swin_t')(net)
    ys = snn.run(x, 16, all_steps=True)
    assert nmse(ys[15], want) < nmse(ys[3], want) and nmse(ys[15], want) < nmse(ys[0], want) / 2


@pytest.mark.parametrize('preset', ['binary', 'signed', 'annealed', 'multi'])
def test_conversion_costs_two_passes(preset):
    from torch.utils.flop_counter import FlopCounterMode
    net, batches = NETS['cnn'][0](8).eval(), [torch.rand(64, 1, 16, 16) for _ in range(8)]
    cost = []
    for job in lambda: [net(x) for x in batches], lambda: Converter(batches, preset=preset, T=8)(net):
        with torch.no_grad(), FlopCounterMode(display=False) as counted: job()
        cost.append(counted.get_total_flops())
    assert cost[1] <= 2 * cost[0], cost[1] / cost[0]


class Branches(nn.Module):
    "Data-dependent control flow around modules of every kind"
    def __init__(self, act=None, hidden=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn, self.act, self.pool, self.hidden = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), act or nn.ReLU(), nn.MaxPool2d(2), hidden or (lambda x: x)
        self.block, self.fc = nn.ModuleDict({'a': nn.Linear(16, 16), 'ln': nn.LayerNorm(16), 'act': nn.GELU()}), nn.LazyLinear(3)

    def forward(self, x):
        if x.sum() < 0: x = -x
        x = self.hidden(self.pool(self.act(self.bn(self.conv(x)))))
        for _ in range(1 + int(x.shape[0] > 1)): x = x + self.block['act'](self.block['a'](self.block['ln'](x.flatten(2)))).view_as(x)
        return {'y': self.fc(x.flatten(1))}


@pytest.mark.parametrize('act', [nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(), nn.Sequential(nn.BatchNorm2d(4), nn.SiLU()), nn.Hardtanh()], ids=lambda m: type(m).__name__)
def test_control_flow_goes_module_by_module(act):
    net, x = Branches(act), images()
    net(x); net.eval()
    want = net(x)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for preset in 'multi', 'signed', 'auto':
        snn = Converter([x], preset=preset, T=8)(net)
        a, b = (nmse(snn.run(x, T), want) for T in (4, 64))
        assert b < a / 4 and b < 4e-3, (preset, a, b)
        torch.testing.assert_close(snn.run(-x, 16)['y'], snn.run(x, 16)['y'], rtol=1e-4, atol=1e-5)
        assert snn.run(x, 5, all_steps=True)['y'].shape == (5, 24, 3)
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items()) and not any('Seat' in type(m).__name__ for m in net.modules())


@pytest.mark.parametrize('hidden', [F.relu, torch.sigmoid, lambda x: x * x, lambda x: x / (1 + x.abs()),
                                    lambda x: x.clamp(max=.2), lambda x: F.layer_norm(x, x.shape[1:])], ids=lambda f: getattr(f, '__name__', '?'))
def test_what_hides_in_control_flow_is_refused(hidden):
    net, x = Branches(hidden=hidden), images()
    net(x); net.eval()
    if hidden is F.relu:                                       # behind a rectifier it does nothing, so there is nothing to refuse
        assert nmse(Converter([x], preset='signed', T=32)(net).run(x, 128), net(x)) < 1e-2
        return
    with pytest.raises(ConversionError, match='not affine'): Converter([x], preset='signed', T=8)(net).run(x)


def test_few_spikes():
    from snnbook.ann2snn import FewSpikeIF, FewSpikes
    net, x = Vector(nn.Sequential(nn.ReLU(), nn.Linear(12, 12), nn.GELU())).eval(), vectors()
    want, errors = net(x).detach(), {}
    for T in 4, 8, 12:
        snn = Converter([x], preset='few', T=T)(net)
        errors[T] = nmse(snn.run(x), want)
        torch.testing.assert_close(snn.run(x, T, all_steps=True)[-1], snn.run(x))
    assert errors[12] < errors[8] / 50 < errors[4] / 2500 and errors[12] < 1e-6, errors
    r = snn.report()
    assert r.whole['steps, layer after layer'] == 24 and all(s['identity'] < 1e-5 and s['uneven'] < 1e-9 for s in r.sites)
    with pytest.raises(InputError, match='waits for all of its input'): snn(x)
    # against decimal arithmetic: the digits of each activation of one layer
    one = Converter([x], preset='few', T=5, threshold='max', post=())(nn.Sequential(nn.Linear(6, 3), nn.ReLU()).eval())
    node, = [m for m in one.modules() if isinstance(m, FewSpikeIF)]
    a, n = torch.relu(one.made.ann[0](x)).double().detach(), 2**5 - 1
    assert nmse((a / node.v_threshold * n).round().clamp(0, n) / n * node.v_threshold, one.run(x)) < 1e-9 and isinstance(one.code, FewSpikes)


@pytest.mark.parametrize('name', ['IF', 'half-threshold IF', 'signed IF', 'burst', 'annealed', 'multi-threshold', 'few-spike'])
def test_every_factory_can_be_passed(name):
    from snnbook.ann2snn import FACTORIES
    assert {*FACTORIES} >= {name} and len(FACTORIES) == 7
    net, x = Vector(nn.Sequential(nn.ReLU(), nn.Linear(12, 12), nn.ReLU())).eval(), vectors()
    with torch.no_grad(): want = net(x)
    snn = Converter([x], neuron_factory=FACTORIES[name], T=16)(net)
    assert nmse(snn.run(x, 16), want) < 3e-2
    if name in ('signed IF', 'burst'):                          # in both ways of converting
        other = Converter([x], neuron_factory=FACTORIES[name], preset='signed', T=16)(net)
        assert nmse(other.run(x), want) < 3e-2 and all(m.burst == (4 if name == 'burst' else 1) for m in other.modules() if isinstance(m, SignedIF))
