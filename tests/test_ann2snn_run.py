"A run in chunks gives the numbers of the loop over time, for networks of every kind, in memory that does not grow with T"
import os, subprocess, sys
import pytest, torch
from torch import nn
from torch.nn import functional as F
from snnbook.ann2snn import Converter, NeuronFactory
from snnbook.ann2snn.chunks import Chunks
from snnbook.ann2snn.network import _step_by_step
from snnbook.functional import reset_net
from snnbook.neuron import IFNode, LIFNode

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings('ignore')


def conv(i, o, **kw): return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, **kw), nn.BatchNorm2d(o), nn.ReLU())


class Mixed(nn.Module):
    "Reads its own batch size, adds, concatenates, multiplies, normalises, and pools; its tail is not linear"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.ln, self.fc, self.out = conv(2, 6), conv(6, 6), nn.LayerNorm(12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.scale = nn.Parameter(torch.rand(1, 6, 1, 1))
    def forward(self, x):
        y = F.max_pool2d(self.a(x * self.scale[:, :2]), 2)
        y = torch.cat([y, self.b(y) + y], 1).permute(0, 2, 3, 1).reshape(x.size(0), -1, 12)
        y = self.ln(y) * torch.sigmoid(self.fc(y))
        return self.out(y.mean(1)).softmax(-1)


class Several(nn.Module):
    "Two inputs; a dictionary with a list and a constant comes out"
    def __init__(self): super().__init__(); self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(3, 8), nn.Linear(8, 2)
    def forward(self, x, y):
        h = F.relu(self.a(x)) + F.relu(self.b(y))
        return {'a': self.c(F.relu(h)), 'b': [h, self.c.bias], 'n': 3}


class Inputs(nn.Module):
    "One dimension, grouped and strided and transposed convolutions, upsampling"
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(2, 4, 3, 2), nn.ReLU(), nn.ConvTranspose1d(4, 4, 3, 2, groups=2), nn.GELU(),
                                 nn.Upsample(scale_factor=2), nn.AvgPool1d(2), nn.Flatten(), nn.LazyLinear(3))
    def forward(self, x): return self.net(x)


def nets():
    torch.manual_seed(0)
    plain = nn.Sequential(conv(2, 6, bias=False), nn.MaxPool2d(2), conv(6, 8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    return {'plain': (plain, (torch.rand(5, 2, 8, 8),)), 'mixed': (Mixed(), (torch.rand(5, 2, 8, 8),)),
            'several': (Several(), (torch.rand(6, 5), torch.rand(6, 3))), 'inputs': (Inputs(), (torch.rand(4, 2, 16),)),
            'one layer': (nn.ReLU(), (torch.rand(3, 7),)), 'no neuron': (nn.Linear(7, 2), (torch.rand(3, 7),)), 'one sample': (Mixed(), (torch.rand(1, 2, 8, 8),))}


def ways(net, x):
    net(*x)
    net, x = net.eval().double(), tuple(v.double() for v in x)
    data = [x if len(x) > 1 else x[0]]
    for preset in 'binary', 'signed', 'annealed', 'multi': yield preset, Converter(data, preset=preset, T=4)(net), x
    if all(m.__class__.__name__ not in ('Mixed', 'Inputs') for m in net.modules()):
        yield 'classic', Converter(data)(net), x
        yield 'LIF', Converter(data, neuron_factory=NeuronFactory(lambda **kw: LIFNode(tau=9., **kw)))(net), x


def leaves(y): return [v for v in torch.utils._pytree.tree_leaves(y) if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize('name', nets())
def test_chunks_are_the_loop(name):
    for way, snn, x in ways(*nets()[name]):
        assert not Chunks(snn, snn.code).why_not
        for T in 1, 2, 7, 33:
            with torch.no_grad(): want = _step_by_step(snn, x, T, True)
            reset_net(snn)
            got, last = snn.run(x, T, all_steps=True), snn.run(x, T)
            assert type(got) is type(want) and (not isinstance(got, dict) or got.keys() == want.keys() and type(got['b']) is list and got['n'] == 3)
            for a, b, c in zip(leaves(want), leaves(got), leaves(last)):
                if name == 'several' and a[0].dim() == 1: continue           # a constant: the loop adds it up
                torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9, msg=lambda m, w=way, T=T: f'{w}, T={T}: {m}')
                torch.testing.assert_close(c, a[-1], rtol=1e-9, atol=1e-9)


def test_spikes_are_identical():
    for way, snn, x in ways(*nets()['plain']):
        sums = {}
        for how in _step_by_step, lambda s, x, T, a: Chunks(s, s.code).run(x, T, a):
            with torch.no_grad(): how(snn, x, 20, False)
            v = [m.v.clone() for m in snn.modules() if hasattr(m, 'v') and isinstance(m.v, torch.Tensor)]
            reset_net(snn)
            sums.setdefault(way, []).append(v)
        a, b = sums[way]
        for p, q in zip(a, b): torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)   # one spike more or less would be a threshold


def test_empty_batches_and_odd_layouts():
    net, x = nets()['plain']
    snn = next(ways(net, x))[1].float()
    x = torch.rand(5, 8, 8, 2).permute(0, 3, 1, 2)
    torch.testing.assert_close(snn.run(x, 9), snn.run(x.contiguous(), 9))
    torch.testing.assert_close(snn.run(x[::2], 9), snn.run(x, 9)[::2])
    assert snn.run(x[:0], 9).shape == (0, 5) and snn.run(x[:0], 3, all_steps=True).shape == (3, 0, 5)


def test_what_cannot_be_merged_goes_step_by_step():
    net, x = nets()['plain']
    snn, seen = next(ways(net, x))[1], []
    node = next(m for m in snn.modules() if hasattr(m, 'v'))
    want = snn.run(x[0].double(), 6)
    h = node.register_forward_hook(lambda *a: seen.append(1))
    torch.testing.assert_close(snn.run(x[0].double(), 6), want); h.remove()
    assert len(seen) == 6
    class Own(nn.Module):                                       # a neuron of somebody else, which keeps its potential by itself
        def __init__(self, **kw): super().__init__(); self.v = 0.
        def forward(self, x): self.v = self.v + x; s = (self.v >= 1).to(x); self.v = self.v - s; return s
        def reset(self): self.v = 0.
    snn = Converter([x[0].double()], neuron_factory=NeuronFactory(Own))(net)
    with torch.no_grad(): want = _step_by_step(snn, (x[0].double(),), 9, False)
    reset_net(snn); torch.testing.assert_close(snn.run(x[0].double(), 9), want)
    class Mine(IFNode):
        def neuronal_fire(self): return (self.v > .5).to(self.v)
    snn = Converter([x[0].double()], neuron_factory=NeuronFactory(Mine))(net)
    with torch.no_grad(): want = _step_by_step(snn, (x[0].double(),), 9, False)
    reset_net(snn); torch.testing.assert_close(snn.run(x[0].double(), 9), want)


MEMORY = """
import re, sys, torch, warnings
from torch import nn
from snnbook.ann2snn import Converter
warnings.simplefilter('ignore'); torch.set_num_threads(1)
peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])
net = nn.Sequential(*[l for i in (3, 32, 32) for l in (nn.Conv2d(i, 32, 3, padding=1), nn.ReLU())], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
snn = Converter([torch.rand(2, 3, 16, 16)], preset=sys.argv[1], T=64, post=())(net)
snn.run(torch.rand(1, 3, 16, 16), 2)
x = torch.rand(16, 3, 32, 32)
open('/proc/self/clear_refs', 'w').write('5'); start = peak()  # the peak from here on
for T in 64, 64, 256: open('/proc/self/clear_refs', 'w').write('5'); snn.run(x, T); print(peak() - start)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads the peak from /proc')
@pytest.mark.parametrize('preset', ['binary', 'annealed'])
def test_memory_does_not_grow_with_time(preset):
    out = subprocess.run([sys.executable, '-c', MEMORY, preset], capture_output=True, text=True, check=True,
                         env={**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'}).stdout  # what is freed goes back
    _, short, long = map(int, out.split())
    assert short > 4096 and long <= 1.15 * short, out.split()
