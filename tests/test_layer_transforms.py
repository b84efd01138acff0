"What the chapters on normalisation, transforms, dropout, pooling and fusing leave out: every layer by the same rules, random shapes, the compiler"
import copy
import math
import pickle
import shutil
import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.signal import lfilter
from torch import nn
from torch.testing import assert_close
from hypothesis import given, settings, strategies as st
from snnbook import functional, layer
from snnbook.base import InputError, MemoryModule, StateError

CASES = dict( # how to build it, and what one sample looks like
    neunorm=(lambda: layer.NeuNorm(4, 4, 4), (4, 4, 4)), neunorm_shared=(lambda: layer.NeuNorm(4, 4, 4, .5, True), (4, 4, 4)),
    dct=(lambda: layer.DCT(2), (4, 4, 4)), axat=(lambda: layer.AXAT(4, 3), (4, 4, 4)),
    dropout=(lambda: layer.Dropout(.3), (4, 4, 4)), dropout2d=(lambda: layer.Dropout2d(.3), (4, 4, 4)),
    dropconnect=(lambda: layer.DropConnectLinear(4, 3), (2, 4)), dropconnect_kept=(lambda: layer.DropConnectLinear(4, 3, invariant=True), (4,)),
    dropconnect_tanh=(lambda: layer.DropConnectLinear(4, 3, activation=torch.tanh, samples_num=9), (4,)),
    pool=(lambda: layer.ChannelsPool(nn.MaxPool1d(2)), (4, 4, 4)), mean=(lambda: layer.ChannelsPool(nn.AvgPool1d(2)), (4, 4)),
    conv_bn=(lambda: layer.ConvBatchNorm2d(4, 3, 3), (4, 4, 4)), conv_bn_plain=(lambda: layer.ConvBatchNorm2d(4, 3, 3, affine=False), (4, 4, 4)))
T, N = 5, 3


def seeded(f, *xs): torch.manual_seed(7); return f(*xs)
def fresh(m): functional.reset_net(m); return m


@pytest.fixture(params=[(n, t) for n in CASES for t in (True, False)], ids=lambda p: f"{p[0]}-{'train' if p[1] else 'eval'}")
def case(request):
    torch.manual_seed(0)
    name, training = request.param
    make, shape = CASES[name]
    return make().double().train(training), (torch.rand(T, N, *shape) > .5).double() + torch.rand(T, N, *shape) / 9


def test_both_step_modes(case):
    m, x_seq = case
    if isinstance(m, layer.ConvBatchNorm2d) and m.training: pytest.skip('batch norm in training sees all steps at once')
    y = seeded(lambda: torch.stack([m(x) for x in x_seq]))
    functional.set_step_mode(fresh(m), 'm')
    assert_close(seeded(m, x_seq), y)
    torch.manual_seed(7); fresh(m)
    assert_close(torch.cat([m(x_seq[:2]), m(x_seq[2:])]), y)                    # in pieces, the memory carries over
    assert fresh(m)(x_seq[:0]).shape == (0, *y.shape[1:]) and fresh(m)(x_seq[:, :0]).shape == (T, 0, *y.shape[2:])
    assert f"step_mode='{m.step_mode}'" in repr(m)


def test_copies(case):
    m, x_seq = case
    functional.set_step_mode(m, 'm')
    seeded(m, x_seq[:2])
    twins = copy.deepcopy(m), pickle.loads(pickle.dumps(m))
    y = seeded(m, x_seq[2:])
    for twin in twins:
        assert repr(twin) == repr(m)
        assert_close(seeded(twin, x_seq[2:]), y)
    assert set(m.state_dict()) == set(dict(m.named_parameters())) | {f'bn.{n}' for n, _ in getattr(m, 'bn', nn.Identity()).named_buffers()}
    for p in m.parameters(): assert_close(torch.autograd.grad(seeded(fresh(m), x_seq).sum(), p, allow_unused=True)[0].isfinite().all(), torch.tensor(True))


def test_state_dict(case):
    m, x_seq = case
    other = copy.deepcopy(m)
    for p in other.parameters(): nn.init.uniform_(p)
    other.load_state_dict(m.state_dict())
    assert_close(seeded(other, x_seq[0]), seeded(m, x_seq[0]))


def test_gradients(case):
    m, x_seq = case
    functional.set_step_mode(m, 'm')
    names = [n for n, _ in m.named_parameters()]
    def f(x, *ps): return seeded(torch.func.functional_call, fresh(m), dict(zip(names, ps)), x)
    x = torch.rand_like(x_seq[:2, :1]).requires_grad_()
    if isinstance(m, layer.ConvBatchNorm2d): m.bn.momentum = 0.                 # a forward in training moves the statistics
    assert torch.autograd.gradcheck(f, (x, *(p.detach().clone().requires_grad_() for p in m.parameters())), fast_mode=x.numel() > 100)


def test_compiled_without_a_break(case):
    m, x_seq = case
    torch.compiler.reset()
    functional.set_step_mode(m, 'm')
    y = seeded(copy.deepcopy(m), x_seq)
    assert_close(seeded(torch.compile(m, backend='eager', fullgraph=True), x_seq), y)


def test_non_contiguous_and_wrong_shapes(case):
    m, x_seq = case
    functional.set_step_mode(m, 'm')
    shuffled = x_seq.movedim(0, -1).contiguous().movedim(-1, 0)
    assert not shuffled.is_contiguous()
    assert_close(seeded(copy.deepcopy(m), shuffled), seeded(copy.deepcopy(m), x_seq))
    net = nn.ModuleDict(dict(body=m)); net.forward = lambda x: net.body(x)
    bad = x_seq[0, 0, 0] if isinstance(m, layer.ChannelsPool) else x_seq[0] if isinstance(m, (layer.ConvBatchNorm2d, layer.Dropout2d)) else x_seq[..., :3]
    if type(m) is layer.Dropout: bad = torch.zeros(T)
    with pytest.raises(InputError, match="layer 'body.*has shape"): net(bad)


compiler = pytest.mark.skipif(not shutil.which('g++') and not shutil.which('clang++'), reason='torch.compile on the CPU needs a C++ compiler')


@compiler
def test_inductor():
    torch.manual_seed(0); torch.compiler.reset()
    net = nn.Sequential(layer.ConvBatchNorm2d(2, 4, 3, padding=1), layer.NeuNorm(4, 8, 8), layer.DCT(4), layer.AXAT(8, 5), layer.ChannelsPool(nn.MaxPool1d(2)),
                        layer.Dropout2d(.5), layer.Flatten(), layer.Dropout(.5), layer.DropConnectLinear(50, 3))
    functional.set_step_mode(net.eval(), 'm')
    x_seq = torch.rand(3, 2, 2, 8, 8)
    want = net(x_seq)
    assert_close(torch.compile(fresh(net), fullgraph=True)(x_seq), want)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), a=st.integers(0, 4), b=st.integers(1, 4), lead=st.lists(st.integers(0, 3), min_size=1, max_size=3),
       dtype=st.sampled_from([torch.float32, torch.float64]))
def test_dct_is_scipys(n, a, b, lead, dtype):
    x = torch.randn(*lead, a * n, b * n, dtype=dtype)
    y = layer.DCT(n)(x)
    assert y.dtype == dtype and y.shape == x.shape
    for i in range(a):
        for j in range(b):
            cut = (..., slice(i * n, i * n + n), slice(j * n, j * n + n))
            assert_close(y[cut].double(), torch.from_numpy(dctn(x[cut].double().numpy(), axes=(-2, -1), norm='ortho')), atol=1e-5 if dtype == torch.float32 else 1e-13, rtol=0)
    assert_close(x.square().sum(), y.square().sum())                            # energy is kept


@settings(max_examples=30, deadline=None)
@given(C=st.integers(1, 5), k=st.floats(0, 1), shared=st.booleans())
def test_neunorm_is_a_filter(C, k, shared):
    m, s = layer.NeuNorm(C, 2, 3, k, shared, step_mode='m').double(), (torch.rand(7, 2, C, 2, 3) > .5).double()
    x = torch.from_numpy(lfilter([(1 - k) / C**2], [1, -k], s.sum(2, keepdim=True).numpy(), axis=0))
    assert_close(m(s), s - m.w * x)
    assert x.max() <= 1 / C + 1e-12


def test_neunorm_starts_as_kaiming():
    torch.manual_seed(3); m = layer.NeuNorm(4, 5, 6)
    torch.manual_seed(3); assert_close(m.w.detach(), torch.empty(4, 5, 6).uniform_(-1 / math.sqrt(30), 1 / math.sqrt(30)))


@settings(max_examples=20, deadline=None)
@given(p=st.floats(0, 1), bias=st.booleans(), seed=st.integers(0, 99))
def test_dropconnect_moments_by_enumeration(p, bias, seed):
    "All 2^n masks of a small layer, weighted by their probability"
    torch.manual_seed(seed)
    m, x = layer.DropConnectLinear(3, 2, bias, p, activation=None).double(), torch.randn(3).double()
    terms = torch.cat([m.weight * x, m.bias[:, None]], 1) if bias else m.weight * x     # [out, n]
    n = terms.shape[1]
    masks = torch.tensor(np.array(np.meshgrid(*[[0., 1.]] * n)).reshape(n, -1).T)       # [2^n, n]
    weight = (p ** (1 - masks) * (1 - p) ** masks).prod(1)
    sums = masks @ terms.T
    mean = weight @ sums
    assert_close(m.eval()(x[None])[0], mean)
    sigma = ((weight @ sums.square()) - mean.square()).detach().clamp(1e-12).sqrt()
    m.activation, z = nn.ReLU(), torch.linspace(-9, 9, 20001, dtype=torch.double)                  # the Gaussian integral, by summation
    want = ((mean + sigma * z[:, None]).relu() * torch.exp(-z[:, None]**2 / 2)).sum(0) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    assert_close(m(x[None])[0], want, atol=2e-6, rtol=0)


def test_dropconnect_training_agrees_with_the_average():
    torch.manual_seed(0)
    m, x = layer.DropConnectLinear(60, 4, p=.5).double(), torch.rand(60).double()
    seen = m(x.expand(20000, 60)).mean(0)
    assert_close(m.eval()(x[None])[0], seen, atol=.01, rtol=0)


@pytest.mark.parametrize('p,bias', [(0., True), (.5, False), (1., True)])
def test_dropconnect_without_variance(p, bias):
    for activation in nn.ReLU, None, nn.Sigmoid:
        m, x = layer.DropConnectLinear(4, 3, bias, p, activation=activation, samples_num=5).eval(), torch.zeros(2, 4, requires_grad=True)
        y = m(x); y.sum().backward()
        want = (1 - p) * nn.functional.linear(x, m.weight, m.bias)
        if p in (0, 1) or not bias: assert_close(y, want if activation is None else activation()(want))
        assert x.grad.isfinite().all() and all(w.grad is None or w.grad.isfinite().all() for w in m.parameters())


def test_masks_stay_and_go():
    kept = lambda: layer.DropConnectLinear(40, 9, invariant=True, bias=False, activation=None)
    for make, shape in (lambda: layer.Dropout(.5), (40,)), (lambda: layer.Dropout2d(.5), (20, 2, 2)), (kept, (40,)):
        m, x = make(), torch.ones(3, *shape)
        y = m(x)
        assert_close(m(x), y)
        with pytest.raises(StateError, match=r'shape \(3, .*input has shape \(1, '): m(x[:1])     # would broadcast
        fresh(m)
        assert not torch.equal(m(x), y)
        assert isinstance(m, MemoryModule) and all(v is None for v in fresh(m).memories())


def test_like_spikingjelly():
    sj = pytest.importorskip('spikingjelly.activation_based.layer', reason='compares with spikingjelly where it is installed')
    s = (torch.rand(6, 2, 4, 5, 5) > .5).float()
    for ours, theirs in (layer.NeuNorm(4, 5, 5, step_mode='m'), sj.NeuNorm(4, 5, 5, step_mode='m')), (layer.Dropout(.3, step_mode='m'), sj.Dropout(.3, step_mode='m')), (
            layer.Dropout2d(.3, step_mode='m'), sj.Dropout2d(.3, step_mode='m')):
        ours.load_state_dict(theirs.state_dict())
        assert_close(seeded(ours, s), seeded(theirs, s))
    ours, theirs = layer.DropConnectLinear(5, 3), sj.DropConnectLinear(5, 3)
    ours.load_state_dict(theirs.state_dict())
    assert_close(seeded(ours, s[0, 0, 0]), seeded(theirs, s[0, 0, 0]))
    assert_close(ours.eval()(s[0, 0, 0]), theirs.eval()(s[0, 0, 0]), atol=.1, rtol=0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_dropconnect_cuts_exactly_the_share_that_it_should(dtype):
    "A random number may be exactly zero: one in 256 of bfloat16's, and with p = 0 nothing may be cut"
    torch.manual_seed(0)
    x = torch.rand(8, 300, dtype=dtype)
    for p in 0., .5, 1.:
        w, b = layer.DropConnectLinear(300, 300, p=p).to(dtype)._masks(x)
        share = torch.cat([w.flatten(), b.flatten()]).double().mean().item()
        assert share == 1 - p if p in (0, 1) else abs(share - (1 - p)) < 2e-3
    rand = torch.rand
    try:
        torch.rand = lambda *a, **kw: torch.zeros_like(rand(*a, **kw))
        assert layer.DropConnectLinear(3, 2, p=0.)._masks(x[:, :3])[0].all()
    finally: torch.rand = rand


def test_dropconnect_average_in_half_precision():
    "The square of 300 is no float16"
    from snnbook.layer.dropconnect import _mean_relu
    mu, var = torch.tensor([300., 300., -300., 0.]), torch.tensor([250.**2, 0., 100.**2, 9.])
    assert_close(_mean_relu(mu.half(), var.half()).double(), _mean_relu(mu.double(), var.double()), rtol=.05, atol=.01)


def test_dropconnect_says_what_it_averages_and_refuses_what_it_cannot():
    from snnbook.neuron import LIFNode
    for f, text in (None, 'activation=None'), (torch.tanh, 'activation=tanh'), (nn.ReLU, '(activation): ReLU()'): assert text in repr(layer.DropConnectLinear(4, 3, activation=f))
    with pytest.raises(InputError, match='LIFNode has a memory'): layer.DropConnectLinear(4, 3, activation=nn.Sequential(nn.ReLU(), LIFNode()))
    m = layer.DropConnectLinear(4, 3)
    m.activation = LIFNode()
    for training in True, False:
        with pytest.raises(InputError, match='LIFNode has a memory'): m.train(training)(torch.rand(2, 4))
    with pytest.raises(InputError, match='samples_num must be an integer'): layer.DropConnectLinear(4, 3, samples_num=1.5)


def test_spikes_of_any_type():
    s = torch.rand(2, 4, 4, 4) > .5
    for make in lambda: layer.NeuNorm(4, 4, 4), lambda: layer.DCT(2), lambda: layer.AXAT(4, 3), lambda: layer.Dropout(.3), lambda: layer.DropConnectLinear(4, 3):
        for training in True, False:
            m = seeded(make).train(training)
            a, b, c = (seeded(fresh(m), x).float() for x in (s, s.long(), s.float()))
            assert_close(a, c); assert_close(b, c)
    z = torch.randn(2, 4, 4, dtype=torch.complex64)
    assert_close(layer.DCT(2)(z), torch.complex(layer.DCT(2)(z.real), layer.DCT(2)(z.imag)))


def test_fused_convolution_is_left_alone_by_a_call_that_fails():
    torch.manual_seed(0)
    m = layer.ConvBatchNorm2d(4, 3, 3)
    for p in m.bn.running_mean, m.bn.running_var, *m.bn.parameters(): nn.init.uniform_(p, .3, 2)
    before = copy.deepcopy(m.state_dict())
    net = nn.Sequential(m)
    for change, shape in (m.scale_fused_weight, '(3, 4, 3, 3)'), (m.scale_fused_bias, '(3,)'):
        for kb in (2., torch.ones(7)), (torch.ones(7), 2.), (2., torch.ones(2, 3, 4, 3, 3)):
            with pytest.raises(InputError) as e: change(*kb)
            assert 'ConvBatchNorm2d' in str(e.value) and shape in str(e.value)
            assert all(torch.equal(v, before[k]) for k, v in net[0].state_dict().items())


def test_too_few_channels_for_a_window():
    x = torch.rand(2, 4, 3, 3)
    for pool in nn.MaxPool1d(5), nn.AvgPool1d((9,), padding=2), nn.LPPool1d(2, 5), nn.MaxPool1d(3, dilation=2):
        net = nn.Sequential(layer.ChannelsPool(pool))
        with pytest.raises(InputError, match=r"layer '0' \(ChannelsPool\).*needs at least 5.*shape \(2, 4, 3, 3\)"): net(x)
        assert net(torch.rand(2, 5, 3, 3)).shape == (2, 1, 3, 3)
    for pool in nn.MaxPool1d(5, 1, 1), nn.AvgPool1d(5, padding=1), nn.MaxPool1d(5, 5, ceil_mode=True), nn.AdaptiveMaxPool1d(1):
        assert layer.ChannelsPool(pool)(x).shape[0] == 2


def test_small_print():
    m = layer.NeuNorm(4, 4, 4); m(torch.rand(1, 4, 4, 4)); m.x = 0.; m(torch.rand(2, 4, 4, 4))      # set by hand
    assert layer.DCT(np.int64(2))(torch.rand(1, 4, 4)).shape == (1, 4, 4)
    with pytest.raises(InputError, match='at least 1'): layer.AXAT(4, 0)
