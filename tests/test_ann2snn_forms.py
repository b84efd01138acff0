"Networks as other people write them: they ask for shapes, take dictionaries and objects, and answer with them; loaders of every form"
import collections, copy, dataclasses, math, pickle
from typing import Any
import numpy as np
import pytest, torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from snnbook.ann2snn import Converter, LeastSquares
from snnbook.ann2snn.neurons import CodedNeuron
from snnbook.ann2snn.presets import nmse
from snnbook.base import InputError

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings('ignore')


def rand(*shape, seed=1): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Bert(nn.Module):
    "The embeddings and one layer, with the position ids in a buffer that is cut to length"
    def __init__(self, d=16, h=2):
        super().__init__()
        self.word, self.pos, self.ln, self.l1, self.l2 = nn.Embedding(50, d), nn.Embedding(12, d), nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.register_buffer('position_ids', torch.arange(12).expand((1, -1)))
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.i, self.f, self.cls, self.h, self.d = nn.Linear(d, 2 * d), nn.Linear(2 * d, d), nn.Linear(d, 3), h, d

    def split(self, x): return x.view(x.size()[:-1] + (self.h, self.d // self.h)).permute(0, 2, 1, 3)

    def forward(self, ids):
        x = self.ln(self.word(ids) + self.pos(self.position_ids[:, :ids.size(1)]))
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        c = (torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.d // self.h)).softmax(-1) @ v
        c = c.permute(0, 2, 1, 3).contiguous()
        x = self.l1(self.o(c.view(c.size()[:-2] + (self.d,))) + x)
        return self.cls(torch.tanh(self.l2(self.f(F.gelu(self.i(x))) + x)[:, 0]))


class Causal(nn.Module):
    "Token embeddings that share the weights of the head, positions made in forward, a mask cut to length; an answer in two parts"
    def __init__(self, d=8):
        super().__init__()
        self.te, self.pe, self.c, self.f, self.head = nn.Embedding(30, d), nn.Embedding(10, d), nn.Linear(d, 3 * d), nn.LayerNorm(d), nn.Linear(d, 30, bias=False)
        self.te.weight, self.d = self.head.weight, d
        self.register_buffer('bias', torch.tril(torch.ones(10, 10)).view(1, 10, 10))

    def forward(self, idx, targets=None):
        b, t = idx.size()
        assert t <= 10, f'a sequence of length {t}'
        x = self.te(idx) + self.pe(torch.arange(0, t, dtype=torch.long, device=idx.device))
        q, k, v = self.c(self.f(x)).split(self.d, dim=2)
        a = (q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))).masked_fill(self.bias[:, :t, :t] == 0, float('-inf')).softmax(-1)
        return self.head((x + F.silu(a @ v))[:, [-1], :]), None


class Windows(nn.Module):
    "Windows, and back: the number of samples is calculated from that of the windows"
    def __init__(self, d=4): super().__init__(); self.n, self.q, self.fc = nn.LayerNorm(d), nn.Linear(d, d), nn.Linear(d, 3)

    def forward(self, x, w=4):
        x = x.permute(0, 2, 3, 1)
        B, H, W, C = x.shape
        y = torch.roll(self.n(x), (-2, -2), (1, 2)).view(B, H // w, w, W // w, w, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, w * w, C)
        y = (self.q(y) @ y.transpose(-2, -1)).softmax(-1) @ y
        B = int(y.shape[0] / (H * W / w / w))
        y = y.view(B, H // w, W // w, w, w, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(B, H, W, -1)
        return self.fc(F.gelu(torch.roll(y, (2, 2), (1, 2)) + x).mean((1, 2)))


class Recurrent(nn.Module):
    def __init__(self): super().__init__(); self.a, self.u, self.o = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        if not isinstance(x, torch.Tensor): raise TypeError
        h = torch.zeros(len(x), 8, device=x.device)
        for t in range(x.size(1)): h = torch.tanh(self.a(x[:, t]) + self.u(h))
        return self.o(h)


class Two(nn.Module):
    def __init__(self): super().__init__(); self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)


class Sized(Two):
    def forward(self, x=None, mask=None):
        if x.dim() == 1: x = x[None]
        h = self.a(x.view(len(x), -1)).chunk(2, -1)
        if isinstance(h, tuple): h = torch.cat(h, -1)
        for _ in range(x.shape[1] // 3): h = F.relu(h) + .1
        return self.b(h)


@pytest.mark.parametrize('net, x', [(Bert(), torch.randint(50, (24, 10))), (Causal(), torch.randint(30, (24, 7))), (Windows(), rand(12, 4, 8, 8)),
                                    (Recurrent(), rand(24, 5, 6)), (Sized(), rand(24, 6))], ids=lambda v: type(v).__name__)
def test_networks_that_ask_for_shapes(net, x):
    torch.manual_seed(0)
    for p in net.parameters(): nn.init.normal_(p, std=.3 if p.dim() > 1 else .1)
    net.eval()
    with torch.no_grad(): want, one = net(x), net(x[:1])
    for preset, few, many in ('multi', 2, 10), ('signed', 4, 64):
        snn = Converter([x], preset=preset, T=many)(net)
        ys = snn.run(x, many, all_steps=True)
        at = lambda t, ys=ys: ys[0][t - 1] if isinstance(ys, tuple) else ys[t - 1]
        goal = want[0] if isinstance(want, tuple) else want
        assert any(isinstance(m, CodedNeuron) for m in snn.modules()), 'nothing spikes'
        assert nmse(at(many), goal) < min(nmse(at(few), goal) / 4, 5e-3), (preset, nmse(at(few), goal), nmse(at(many), goal))
        assert nmse(snn.run(x[:1], many), one) < 3e-2                # another number of samples
    again = pickle.loads(pickle.dumps(snn))
    torch.testing.assert_close(again.run(x, 4), copy.deepcopy(snn).run(x, 4))
    if x.is_floating_point() and x.dim() == 3:
        with pytest.raises(InputError, match='asks for the shape'): snn.run(x[:, :3])


def test_what_depends_on_the_data_or_on_the_number_of_samples_is_not_frozen():
    class Item(Two):
        def forward(self, x): h = self.a(x); return self.b(F.relu(h) / h.abs().max().item())
    class Lone(Two):
        def forward(self, x): return self.b(F.relu(self.a(x)) if x.shape[0] > 4 else torch.tanh(self.a(x)))
    class Index(Two):
        def forward(self, x): return self.b(F.relu(self.a(x))[:, :int(x.sum().abs()) % 12 + 1].sum(1, keepdim=True).expand(-1, 12))
    for net in Item(), Lone(), Index():
        with pytest.raises(InputError): Converter([rand(32, 6)], preset='signed')(net.eval()).run(rand(2, 6))


@dataclasses.dataclass
class Answer: y: Any; hidden: Any = None


@dataclasses.dataclass
class Batch: x: Any; z: Any = None; name: str = ''


Pairs = collections.namedtuple('Pairs', 'x z')


class DictIn(Two):
    def forward(self, batch): return {'y': self.b(F.relu(self.a(batch['x']) + (self.a(batch['z']) if 'z' in batch else 0)))}
class PairIn(Two):
    def forward(self, pair): x, z = pair; return self.b(F.relu(self.a(x) - self.a(z)))
class KeywordIn(Two):
    def forward(self, *, x, z=None): return self.b(F.relu(self.a(x)))
class NamedIn(Two):
    def forward(self, **kw): return self.b(F.relu(self.a(kw['x']) + kw['z'].mean(1, keepdim=True)))
class ObjectIn(Two):
    def forward(self, b): h = F.relu(self.a(b.x)); return Answer(self.b(h), [h])
class TupleOut(Two):
    def forward(self, x): h = F.relu(self.a(x)); return Pairs(self.b(h), h)


X, Z, LABEL = rand(48, 6), rand(48, 6, seed=2), torch.zeros(48, dtype=torch.long)
FORMS = {'dict': (DictIn, {'x': X, 'label': LABEL}, {'x': X}),
         'dict, label': (DictIn, ({'x': X, 'z': Z}, LABEL), {'x': X, 'z': Z}),
         'user dict': (DictIn, collections.UserDict(x=X, id='a word'), {'x': X}),
         'arrays': (DictIn, {'x': X.numpy()}, {'x': X}), 'pair': (PairIn, (X, Z), (X, Z)),
         'pair, label': (PairIn, ((X, Z), LABEL), (X, Z)),
         'keyword': (KeywordIn, {'x': X, 'label': LABEL}, X),
         'keywords': (NamedIn, {'z': Z, 'x': X}, {'x': X, 'z': Z}), 'object': (ObjectIn, Batch(X, LABEL), Batch(X)),
         'named tuple': (ObjectIn, Pairs(X, LABEL), Pairs(X, None)), 'named answer': (TupleOut, [X], X)}


@pytest.mark.parametrize('name', FORMS)
def test_inputs_and_answers_in_structures(name):
    make, batch, x = FORMS[name]
    torch.manual_seed(0)
    net = make().eval()
    with torch.no_grad(): want = net(**x) if make is NamedIn else net(x=x) if make is KeywordIn else net(x)
    for preset in 'signed', 'multi', None:
        snn = Converter([batch, batch], preset=preset, T=32)(net) if preset else Converter([batch])(net)
        y = snn.run(x, 32)
        assert type(y) is type(want) and nmse(y, want) < 5e-3, (preset, nmse(y, want))
        again = pickle.loads(pickle.dumps(snn)).run(x, 32)
        assert nmse(again, y) < 1e-9
        if preset: assert abs(snn.report(x).whole['NMSE'] - nmse(y, want)) < 1e-6
    if isinstance(x, dict) and make is DictIn:
        with pytest.raises(InputError, match="'x'"): snn.run({'q': X})


def test_an_object_that_cannot_be_made_anew_comes_as_a_dictionary():
    @dataclasses.dataclass
    class Odd:
        y: Any
        def __init__(self, net, h): self.y = net(h)
    class Net(Two):
        def forward(self, x): return Odd(self.b, F.relu(self.a(x)))
    torch.manual_seed(0)
    net = Net().eval()
    y = Converter([X], preset='signed', T=32)(net).run(X)
    assert [*y] == ['y'] and nmse(y, net(X)) < 5e-3


def test_a_tree_takes_structures_too():
    class Branch(DictIn):
        def __init__(self): super().__init__(); self.r = nn.ReLU()
        def forward(self, batch): return Answer(self.b(self.r(self.a(batch['x'] if batch['x'].sum() > 0 else -batch['x']))))
    torch.manual_seed(0)
    net = Branch().eval()
    snn = Converter([{'x': X, 'label': LABEL}], preset='signed', T=32)(net)
    assert type(snn.run({'x': X})) is Answer and nmse(snn.run({'x': -X}), net({'x': X})) < 5e-3
    assert snn.report().whole['NMSE'] < 5e-3


@pytest.mark.parametrize('loader', [X.numpy(), [((X,), LABEL)], [({'x': X}, LABEL)], [(X.numpy(), LABEL.numpy())], [X[:1], X[1:]], (b for b in X.split(16))],
                         ids=['array', 'nested', 'dict and label', 'arrays', 'unequal', 'generator'])
def test_loaders(loader):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    assert nmse(Converter(loader, preset='signed', T=32)(net).run(X), net(X)) < 5e-3


def test_loaders_that_cannot_be_used():
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    for preset in 'signed', None:
        make = lambda loader, preset=preset, **kw: Converter(loader, preset=preset, **kw)(net)
        with pytest.raises(InputError, match='cannot take batch 2'): make([X, rand(8, 5)])
        with pytest.raises(InputError, match='NaN'): make([X * torch.nan])
        with pytest.raises(InputError, match='device'): make([X], device='cuda' if not torch.cuda.is_available() else 'cuda:99')
        with pytest.raises(InputError, match='list of rules'): make([X], rules=3)


def test_networks_for_one_size_of_batch():
    class Fixed(Two):
        def __init__(self, n): super().__init__(); self.n = n
        def forward(self, x): return self.b(F.gelu(self.a(x.view(self.n, 6))))
    for n in 1, 12:
        torch.manual_seed(0)
        net, loader = Fixed(n).eval(), list(X.split(n))
        for preset in 'signed', 'multi': assert nmse(Converter(loader, preset=preset, T=32)(net).run(X[-n:]), net(X[-n:])) < 1e-2
        with pytest.raises(InputError): Converter(loader, preset='signed', T=4)(net).run(X[:7])


def test_hooks_that_would_be_lost():
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    net[1].register_forward_pre_hook(lambda m, x: (x[0] + .3,))
    for preset in 'signed', None:
        with pytest.raises(InputError, match="layer '1' .ReLU.*pre-hook"): Converter([X], preset=preset)(net)


@pytest.mark.parametrize('mode', ['mse', 'MSE', 'balance', 'moments', LeastSquares(16)], ids=lambda m: m if isinstance(m, str) else type(m).__name__)
def test_every_mode_in_both_ways(mode):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    for preset in None, 'signed': assert nmse(Converter([X], mode=mode, preset=preset, T=np.int64(16))(net).run(X, np.int64(16)), net(X)) < 3e-2


def test_weights_that_are_computed_from_others():
    new = nn.utils.parametrizations
    for wrap in nn.utils.weight_norm, nn.utils.spectral_norm, new.weight_norm, new.spectral_norm, lambda m: prune.random_unstructured(m, 'weight', .3):
        torch.manual_seed(0)
        net = nn.Sequential(wrap(nn.Conv2d(1, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(16, 3)))
        x = rand(32, 1, 4, 4)
        net(x); net.eval()
        want, state = net(x).detach(), copy.deepcopy(net.state_dict())
        snn = Converter([x], preset='few', T=10)(net)
        assert nmse(snn.run(x), want) < 1e-5 and snn.report().whole['batch norms folded'] == 1
        assert [*state] == [*net.state_dict()] and all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
        torch.testing.assert_close(net(x), want)


def test_more_spellings():
    class Net(Two):
        def __init__(self, f): super().__init__(); self.f = f
        def forward(self, x): h = self.a(x); y = self.f(h); return self.b(y) if y.dim() == h.dim() else y
    for f in (torch.negative, lambda h: torch.subtract(h, 1), torch.fliplr, lambda h: torch.fmax(h, 1 - h), lambda h: F.pairwise_distance(h, h.relu() + 1),
              lambda h: torch.logaddexp(h, -h), torch.absolute,
              lambda h: h.clamp_min(.1), lambda h: torch.special.expit(h), lambda h: torch.nan_to_num(h).relu(),
              lambda h: torch.linalg.vecdot(h, h.relu()), lambda h: h / torch.var_mean(h, 1, keepdim=True)[0]):
        torch.manual_seed(0)
        net = Net(f).eval()
        want = net(X).detach()
        a, b = (nmse(Converter([X], preset='multi', T=T)(net).run(X), want) for T in (2, 10))
        assert b < max(a / 4, 1e-12) and b < 1e-4, (a, b)
