"Neurons and surrogates beside those of SpikingJelly and snnTorch, on the same random input"
import pytest, torch
from snnbook import neuron, surrogate

T, N = 40, 64
COMMON = [dict(), dict(v_reset=None), dict(v_reset=-.3), dict(detach_reset=True), dict(v_threshold=.7, v_reset=None, detach_reset=True)]
NODES = [('IFNode', {}), ('LIFNode', dict(tau=2.)), ('LIFNode', dict(tau=3.7)), ('LIFNode', dict(tau=3.7, decay_input=False)), ('ParametricLIFNode', dict(init_tau=2.)),
         ('QIFNode', dict(tau=4.)), ('EIFNode', dict(tau=4., delta_T=.5)), ('IzhikevichNode', dict(tau=4., tau_w=10., a=.2, b=.3)),
         ('KLIFNode', dict(tau=3.)), ('KLIFNode', dict(tau=3., scale_reset=True))]


def run(node, x):
    node.step_mode = 'm'
    x = x.clone().requires_grad_()
    s = node(x)
    (s * torch.linspace(.5, 1.5, T)[:, None]).sum().backward()
    return s.detach(), x.grad, {n: p.grad for n, p in node.named_parameters()}


@pytest.mark.parametrize('common', COMMON, ids=str)
@pytest.mark.parametrize('name,kwargs', NODES, ids=lambda v: str(v))
def test_spikingjelly_neurons(name, kwargs, common):
    sj = pytest.importorskip('spikingjelly.activation_based.neuron', reason='needs the peer spikingjelly')
    from spikingjelly.activation_based import surrogate as sj_surrogate
    torch.manual_seed(0)
    x = torch.randn(T, N).abs() * (.4 if name in ('QIFNode', 'EIFNode', 'IzhikevichNode') else 2)  # these run away to infinity when pushed hard
    ours = run(getattr(neuron, name)(**kwargs, **common, surrogate_function=surrogate.ATan()), x)
    theirs = run(getattr(sj, name)(**kwargs, **common, surrogate_function=sj_surrogate.ATan()), x)
    assert 0 < ours[0].mean() < 1
    assert (ours[0] != theirs[0]).float().mean() <= 1e-3           # a tie may round the other way
    same = (ours[0] == theirs[0]).all(0)
    torch.testing.assert_close(ours[1][:, same], theirs[1][:, same], rtol=1e-4, atol=1e-5)
    if same.all():
        for n, g in theirs[2].items(): torch.testing.assert_close(ours[2][n], g, rtol=1e-3, atol=1e-4)


def test_spikingjelly_cuba():
    sj = pytest.importorskip('spikingjelly.activation_based.neuron', reason='needs the peer spikingjelly')
    torch.manual_seed(0)
    x = torch.randn(T, N)
    ours, theirs = neuron.CUBALIFNode(), sj.CUBALIFNode()
    assert torch.equal(torch.stack([ours(i) for i in x]), torch.stack([theirs(i) for i in x]))


@pytest.mark.parametrize('name', ['Sigmoid', 'ATan', 'PiecewiseQuadratic', 'PiecewiseExp', 'SoftSign', 'SuperSpike', 'Erf', 'Rect'])
@pytest.mark.parametrize('alpha', [None, .7, 3.])
def test_spikingjelly_surrogates(name, alpha):
    sj = pytest.importorskip('spikingjelly.activation_based.surrogate', reason='needs the peer spikingjelly')
    out = []
    for module in (surrogate, sj):
        x = torch.linspace(-2.01, 2, 500, dtype=torch.float64, requires_grad=True)
        y = (getattr(module, name)() if alpha is None else getattr(module, name)(alpha))(x)
        y.sum().backward()
        out.append((y.detach(), x.grad))
    torch.testing.assert_close(out[0], out[1])


@pytest.mark.parametrize('name, numbers', [('NonzeroSignLogAbs', ()), ('NonzeroSignLogAbs', (3.,)), ('QPseudoSpike', ()), ('QPseudoSpike', (4.,)), ('PiecewiseLeakyReLU', ()),
    ('PiecewiseLeakyReLU', (.5, .2)), ('LeakyKReLU', ()), ('LeakyKReLU', (.2, .7)), ('S2NN', ()), ('S2NN', (2., .5))])
@pytest.mark.parametrize('spiking', [True, False])
def test_rare_spikingjelly_surrogates(name, numbers, spiking):
    sj = pytest.importorskip('spikingjelly.activation_based.surrogate', reason='needs the peer spikingjelly')
    out = []
    for module in (surrogate, sj):
        x = torch.linspace(-2.01, 2, 500, dtype=torch.float64, requires_grad=True)
        y = getattr(module, name)(*numbers, spiking=spiking)(x)
        y.sum().backward()
        out.append((y.detach(), x.grad))
    if name == 'S2NN' and not spiking: out = [[y[x.detach() > -1] for y in o] for o in out] # theirs has no primitive's slope further down, and adds 1e-5
    torch.testing.assert_close(out[0], out[1], atol=1e-4 if name == 'S2NN' else 1e-12, rtol=1e-6)


@pytest.mark.parametrize('name', ['sigmoid', 'atan', 'soft_sign', 'super_spike', 'piecewise_quadratic', 'piecewise_exp', 'erf', 'rect', 'q_pseudo_spike',
    'nonzero_sign_log_abs', 'leaky_k_relu', 's2nn', 'piecewise_leaky_relu'])
def test_forms_without_an_object_like_spikingjelly(name):
    sj = pytest.importorskip('spikingjelly.activation_based.surrogate', reason='needs the peer spikingjelly')
    numbers, out = (2., .5) if name in ('leaky_k_relu', 's2nn', 'piecewise_leaky_relu') else (3.,), []
    for module in (surrogate, sj):
        x = torch.linspace(-2.01, 2, 500, dtype=torch.float64, requires_grad=True)
        y = getattr(module, name).apply(x, *numbers)
        y.sum().backward()
        out.append((y.detach(), x.grad))
    torch.testing.assert_close(out[0], out[1])


def test_a_surrogate_of_several_numbers_of_ones_own():
    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, a, b): ctx.save_for_backward(x); ctx.numbers = a, b; return surrogate.heaviside(x)
        @staticmethod
        def backward(ctx, grad): (x,), (a, b) = ctx.saved_tensors, ctx.numbers; return grad * torch.where(x < 0, a, b).to(x), None, None
    class Own(surrogate.MultiArgsSurrogateFunctionBase):        # written for SpikingJelly: a forward and numbers of its own
        def __init__(self, a=.2, b=.7, spiking=True): super().__init__(spiking); self.a, self.b = a, b
        def forward(self, x): return self.spiking_function(x, self.a, self.b)
        @staticmethod
        def spiking_function(x, a, b): return Slope.apply(x, a, b)
    for mode in 'sm':
        grads = []
        for fn in Own(), surrogate.LeakyKReLU(.2, .7):
            torch.manual_seed(0)
            x = torch.randn(T, N, requires_grad=True)
            node = neuron.LIFNode(surrogate_function=fn, step_mode=mode)
            (node(x) if mode == 'm' else torch.stack([node(i) for i in x])).square().sum().backward()
            grads.append(x.grad)
        assert torch.equal(*grads) and grads[0].abs().sum() > 0


@pytest.mark.parametrize('soft', [True, False])
def test_snntorch_leaky(soft):
    snn = pytest.importorskip('snntorch', reason='needs the peer snntorch')
    torch.manual_seed(0)
    x, beta = torch.rand(T, N), .8
    peer = snn.Leaky(beta=beta, threshold=1., reset_mechanism='subtract' if soft else 'zero', reset_delay=False)
    ours = neuron.LIFNode(tau=1 / (1 - beta), decay_input=False, v_reset=None if soft else 0.)
    mem, theirs = torch.zeros(N), []
    for i in x:
        s, mem = peer(i, mem)
        theirs.append(s)
    assert (torch.stack(theirs) != torch.stack([ours(i) for i in x])).float().mean() <= 1e-3
