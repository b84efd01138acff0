"The GPU kernels through Triton's interpreter, for every equation and through the neurons"
import pytest
from test_kernels import python

pytest.importorskip('triton', reason='needs triton')

CODE = '''
import torch
from snnbook import neuron, surrogate
nodes = dict(IFNode={}, LIFNode=dict(tau=3.), ParametricLIFNode={}, QIFNode=dict(tau=4.), EIFNode=dict(tau=4., delta_T=.5), IzhikevichNode=dict(tau=4., tau_w=3., a=.2, b=.1),
             AdaptiveLIFNode=dict(tau_a=5.), CUBALIFNode={}, KLIFNode=dict(scale_reset=True))
for name, kwargs in nodes.items():
    for more in dict(v_reset=None), dict(v_reset=-.3, detach_reset=True), dict(v_reset=.1, store_v_seq=True):
        out = []
        for backend in 'torch', 'triton':
            torch.manual_seed(0)
            x = (torch.randn(10, 2, 40) * .8 + .3).requires_grad_()
            node = getattr(neuron, name)(**kwargs, **more, step_mode='m', backend=backend, surrogate_function=surrogate.ATan())
            s = torch.cat([node(x[:3]), node(x[3:])])
            loss = (s * torch.randn(s.shape)).sum() + node.v.square().sum() + (node.v_seq.sum() if node.store_v_seq else 0)
            out.append([s, *(getattr(node, n) for n in node._z), *torch.autograd.grad(loss, [x, *node.parameters()], allow_unused=True)])
        assert node.backend_used == 'triton'
        print(torch.equal(out[0][0], out[1][0]) and all(a is b is None or torch.allclose(a, b, atol=1e-4, rtol=1e-3) for a, b in zip(*out)))
'''


def test_every_neuron_in_the_interpreter():
    assert python(CODE, TRITON_INTERPRET='1') == ['True'] * 27
