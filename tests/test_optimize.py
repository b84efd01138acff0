"Networks of all kinds, optimised: the same answers, and the user's network untouched"
import copy, pickle, subprocess, sys, warnings
import pytest, torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from snnbook import functional, layer, neuron
from snnbook.base import InputError, InputTypeError, MemoryModule
from snnbook.monitor import OutputMonitor

if_ = lambda mode='m': neuron.IFNode(step_mode=mode)

def settle(net): # batch norms that look trained, double precision
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            if m.affine: nn.init.uniform_(m.weight, 1, 3); nn.init.uniform_(m.bias, -.5, 1)
            if m.running_mean is not None: nn.init.normal_(m.running_mean, 0, .3); nn.init.uniform_(m.running_var, .1, 1)
    return net.double().eval()

def norms(net): return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())

class Residual(nn.Module):
    def __init__(self, c, mode='m'):
        super().__init__()
        self.c1, self.b1, self.n1 = layer.Conv2d(c, c, 3, padding=1, bias=False, step_mode=mode), layer.BatchNorm2d(c, step_mode=mode), if_(mode)
        self.c2, self.b2, self.n2 = layer.Conv2d(c, c, 3, padding=1, bias=False, step_mode=mode), layer.BatchNorm2d(c, step_mode=mode), if_(mode)
    def forward(self, x): return self.n2(self.b2(self.c2(self.n1(self.b1(self.c1(x)))))) + x

class Twice(nn.Module): # one block at two places
    def __init__(self): super().__init__(); self.stem, self.block, self.fc = layer.Conv2d(2, 4, 1, step_mode='m'), Residual(4), layer.Linear(4, 3, step_mode='m')
    def forward(self, x): return self.fc(self.block(self.block(self.stem(x))).mean((-1, -2)))

class Views(nn.Module): # asks for the usual layout
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), if_('s')
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8 * 9, 3)
    def forward(self, x): x = self.pool(self.act(self.bn(self.conv(x)))); return self.fc(x.view(x.shape[0], -1))

class Functions(nn.Module): # weights used by functions, and an attention-like product
    def __init__(self): super().__init__(); self.conv, self.bn, self.w = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Parameter(torch.randn(4, 4, 1, 1))
    def forward(self, x): y = self.bn(self.conv(x)); return F.conv2d(y.relu(), self.w) + F.conv2d(x, self.conv.weight) * self.bn.weight.sum()

class OverTime(nn.Module): # walks itself
    def __init__(self): super().__init__(); self.conv, self.bn, self.node = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), if_('s')
    def forward(self, x): return torch.stack([self.node(self.bn(self.conv(x[t]))) for t in range(4)])

class Branch(nn.Module): # cannot be followed
    def __init__(self): super().__init__(); self.conv, self.bn = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
    def forward(self, x): y = self.conv(x); return self.bn(y) if x.sum() > 0 else y

class Memory(MemoryModule): # a stateful block of the user's, with a view inside
    def __init__(self): super().__init__(); self.conv, self.bn = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4); self.register_memory('v', 0.); self.step_mode = 'm'
    def single_step_forward(self, x): y = self.bn(self.conv(x)); y = y.view(*y.shape); self.ready(y, 'v'); self.v = self.v * .5 + y; return self.v

class Lists(nn.Module): # modules in a plain list, too
    def __init__(self): super().__init__(); self.conv, self.bn = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4); self.chain = [self.conv, self.bn]
    def forward(self, x):
        for m in self.chain: x = m(x)
        return x

class Inside(nn.Module): # takes a container apart
    def __init__(self): super().__init__(); self.seq = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))
    def forward(self, x): y = self.seq[0](x); return y * self.seq[1](y)

def chain(*ms): return nn.Sequential(*ms)
bn = lambda c, mode='m': layer.BatchNorm2d(c, step_mode=mode)
conv = lambda i, o, mode='m', **kw: layer.Conv2d(i, o, 3, padding=1, step_mode=mode, **kw)
seq, one = (4, 3, 2, 6, 6), (3, 2, 6, 6)
CASES = dict( # network, shape of its input, batch norms that are left
    plain=(lambda: chain(conv(2, 4), bn(4), if_(),
        conv(4, 4, groups=2), bn(4), neuron.LIFNode(step_mode='m'), layer.Flatten(step_mode='m'), layer.Linear(144, 3, step_mode='m')), seq, 0),
    residual=(lambda: chain(conv(2, 4), bn(4), Residual(4), Residual(4)), seq, 0),
    single=(lambda: chain(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), Residual(4, 's')), one, 0),
    twice=(Twice, seq, 0), views=(Views, one, 0), functions=(Functions, one, 1), overtime=(OverTime, seq, 0),
    branch=(Branch, one, 1), memory=(Memory, seq, 1), lists=(Lists, one, 0), inside=(Inside, one, 1),
    shared=(lambda: (lambda b: chain(conv(2, 4), b, if_(), conv(4, 4), b, if_()))(bn(4)), seq, 0),
    half_shared=(lambda: (lambda b: chain(conv(2, 4), b, if_(), b))(bn(4)), seq, 1),
    same_conv=(lambda: (lambda c: chain(c, bn(2), if_(), c, bn(2)))(conv(2, 2)), seq, 2),
    same_pair=(lambda: (lambda c, b: chain(c, b, if_(), c, b))(conv(2, 2), bn(2)), seq, 0),
    containers=(lambda: chain(layer.SeqToANNContainer(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)), layer.MultiStepContainer(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), if_('s')),
        layer.StepModeContainer(True, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), if_('s'), step_mode='m')), seq, 0),
    together=(lambda: chain(layer.ConvBatchNorm2d(2, 4, 3, padding=1, step_mode='m'), if_()), seq, 0),
    recurrent=(lambda: layer.ElementWiseRecurrentContainer(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), if_('s')), torch.add, step_mode='m'), seq, 0),
    psn=(lambda: chain(conv(2, 4), bn(4), neuron.PSN(4)), seq, 0), sliding=(lambda: chain(conv(2, 4), bn(4), neuron.SlidingPSN(2, step_mode='m')), seq, 0),
    norms=(lambda: chain(conv(2, 4), bn(4), if_(),
        layer.NeuNorm(4, 6, 6, step_mode='m'), layer.GroupNorm(2, 4, step_mode='m'), layer.InstanceNorm2d(4, step_mode='m')), seq, 0),
    batch=(lambda: chain(conv(2, 4), layer.BatchNorm2d(4, track_running_stats=False, step_mode='m'), if_()), seq, 1),
    pooled=(lambda: chain(conv(2, 4), bn(4), layer.MaxPool2d(2, step_mode='m'), if_(), layer.ConvTranspose2d(4, 4, 2, 2, step_mode='m'), bn(4),
        layer.Upsample(scale_factor=2, step_mode='m'), layer.Dropout(step_mode='m')), seq, 0),
    transposed=(lambda: chain(nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2), nn.BatchNorm2d(4)), one, 0),
    volume=(lambda: chain(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), if_('s')), (2, 2, 4, 4, 4), 0),
    signal=(lambda: chain(layer.Conv1d(2, 4, 3, step_mode='m'), layer.BatchNorm1d(4, step_mode='m'), if_()), (4, 3, 2, 9), 0),
    linear=(lambda: chain(layer.Linear(6, 5, step_mode='m'), layer.BatchNorm1d(5, step_mode='m'), if_()), (4, 3, 6), 0),
    synapse=(lambda: chain(conv(2, 4), bn(4), if_(), layer.SynapseFilter(tau=10., step_mode='m'), layer.AvgPool2d(2, step_mode='m')), seq, 0),
    layer=(lambda: conv(2, 4), seq, 0), node=(lambda: if_(), seq, 0), nothing=(lambda: nn.Sequential(), seq, 0),
    unaffine=(lambda: chain(conv(2, 4, bias=False), layer.BatchNorm2d(4, affine=False, step_mode='m')), seq, 0))

def snapshot(net): return [(n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), type(m)) for n, m in net.named_modules()], [
    (n, t.data_ptr(), t.stride(), t._version, t.requires_grad, t.clone()) for n, t in (*net.named_parameters(), *net.named_buffers())]

@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('grad', [False, True])
def test_same(name, grad):
    torch.manual_seed(0)
    make, shape, left = CASES[name]
    net = settle(make())
    before, x = snapshot(net), torch.rand(shape).double() - .2
    with warnings.catch_warnings():
        warnings.simplefilter('ignore' if name == 'branch' else 'error')
        new = functional.optimize(net)
    after = snapshot(net)
    assert str(before) == str(after)
    assert norms(new) == left
    assert isinstance(new, type(net)) and new is not net
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in new.parameters()}
    with torch.set_grad_enabled(grad):
        for _ in range(2): # the memory carries over
            a, b = net(x), new(x)
            assert_close(a, b); assert a.shape == b.shape and b.stride() == a.contiguous().stride()
    functional.reset_net(new); functional.reset_net(net)
    again = pickle.loads(pickle.dumps(copy.deepcopy(new)))
    assert_close(again(x), net(x))
    functional.reset_net(net)
    twice = functional.optimize(again.eval()) if name != 'branch' else again
    functional.reset_net(twice)
    assert_close(twice(x), net(x))

@pytest.mark.parametrize('T', [0, 1, 2, 5])
@pytest.mark.parametrize('N', [0, 1, 3])
def test_pieces(T, N, monkeypatch):
    monkeypatch.setattr(functional, '_PIECE', (2 * max(N, 1) * 4 * 36 * 8,) * 2) # two steps a piece
    for name in 'plain', 'containers', 'sliding', 'synapse', 'pooled', 'norms':
        net = settle(CASES[name][0]())
        new, x = functional.optimize(net), torch.rand(T, N, 2, 6, 6).double()
        with torch.no_grad():
            for _ in range(2):
                try: want = net(x)
                except Exception as e:
                    with pytest.raises(type(e)): new(x)
                    break
                assert_close(new(x), want)

def test_not_cut_when_watched(monkeypatch):
    monkeypatch.setattr(functional, '_PIECE', (1, 1))
    new, x = functional.optimize(settle(CASES['plain'][0]())), torch.rand(seq).double()
    with torch.no_grad(), OutputMonitor(new, neuron.IFNode) as mon: new(x)
    assert [len(r) for r in mon.records] == [4]
    functional.reset_net(new); new[2].store_v_seq = True
    with torch.no_grad(): new(x)
    assert len(new[2].v_seq) == 4

def test_modes_and_shapes_may_change():
    net = settle(CASES['plain'][0]()); new = functional.optimize(net)
    for n in net, new: functional.set_step_mode(n, 's')
    x = torch.rand(one).double()
    with torch.no_grad():
        assert_close(new(x), net(x)); assert_close(new(x), net(x))
        for n in net, new: functional.reset_net(n); functional.set_step_mode(n, 'm')
        for shape in seq, (2, 5, 2, 6, 6):
            x = torch.rand(shape).double(); assert_close(new(x), net(x))
            for n in net, new: functional.reset_net(n)

def test_hooks_stay_and_do_not_run():
    net, seen = settle(CASES['plain'][0]()), []
    net.register_forward_hook(lambda m, a, y: y + 1)
    net[0].register_forward_hook(lambda m, a, y: y * 2)
    net[2].register_forward_pre_hook(lambda m, a: seen.append(0))
    new, x = functional.optimize(net), torch.rand(seq).double()
    assert not seen and norms(new) == 1
    with torch.no_grad(): assert_close(new(x), net(x))

def test_half():
    torch.manual_seed(0)
    net = settle(CASES['plain'][0]()).float(); x = torch.rand(seq)
    for dtype in torch.bfloat16, torch.float16:
        new = functional.optimize(net, dtype=dtype)
        assert new[0].weight.dtype == dtype and new[-1].weight.dtype == torch.float32
        with torch.no_grad(): y = new(x)
        assert y.dtype == torch.float32 and new[2].v.dtype == torch.float32
        functional.reset_net(new)
        assert pickle.loads(pickle.dumps(new))(x).equal(y)

def test_refusals():
    net = CASES['plain'][0]()
    with pytest.raises(InputError, match=r'call net.eval\(\) first'): functional.optimize(net)
    with pytest.raises(InputTypeError): functional.optimize(lambda x: x)
    with pytest.raises(InputError, match='dtype'): functional.optimize(net.eval(), dtype=torch.int8)
    with pytest.warns(UserWarning, match='cannot follow the forward of Branch'): functional.optimize(Branch().eval())
    assert norms(functional.optimize(net, fold=False)) == 2
    assert functional.optimize(net, channels_last=False)[0].weight.is_contiguous()

PROGRAM = '''
import sys, torch
from torch import nn
from snnbook import ann2snn, functional, layer, neuron
torch.set_num_threads(1); torch.manual_seed(0)
peak = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])
x, m, kind = torch.rand(4, 3, 64, 64), dict(step_mode='m'), sys.argv[1]
block = lambda i, o: [layer.Conv2d(i, o, 3, padding=1, **m), layer.BatchNorm2d(o, **m), neuron.IFNode(**m)]
net = nn.Sequential(*block(3, 8), *block(8, 8), layer.Flatten(**m), layer.Linear(8 * 4096, 10, **m)).eval()
if kind == 'converted':
    ann = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4096, 10)).eval()
    net = ann2snn.Converter([x], T=8)(ann)
if kind == 'optimized': net = functional.optimize(net); functional._PIECE = (1 << 21,) * 2
def run(T):
    seq = x.expand(T, *x.shape)
    net.run(x, T=T) if kind == 'converted' else functional.chunk_multi_step_forward(8, seq, net) if kind == 'chunked' else net(seq)
with torch.no_grad():
    for T in 16, 64, 320: run(T); print(peak())
'''

@pytest.mark.skipif(sys.platform != 'linux', reason="the peak of a process is read from Linux")
@pytest.mark.parametrize('kind', ['chunked', 'optimized', 'converted', 'whole'])
def test_constant_memory(kind): # in KiB: a step of one activation is 512, so 256 steps more are 128 MiB for each that is kept
    first, short, long = map(int, subprocess.run([sys.executable, '-c', PROGRAM, kind], capture_output=True, text=True, check=True).stdout.split())
    if kind == 'whole': assert long - short > 100_000 # so that the test can fail
    else: assert long - short < 32_768, (first, short, long)
