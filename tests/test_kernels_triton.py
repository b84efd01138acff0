"The GPU kernels through Triton's interpreter, for every equation and through the neurons"
import itertools
import os

import pytest
from snnbook import dynamics, surrogate
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
            out.append([s, *(getattr(node, n) for n in node.equation_memories), *torch.autograd.grad(loss, [x, *node.parameters()], allow_unused=True)])
        assert node.backend_used == 'triton'
        print(torch.equal(out[0][0], out[1][0]) and all(a is b is None or torch.allclose(a, b, atol=1e-4, rtol=1e-3) for a, b in zip(*out)))
'''


def test_every_neuron_in_the_interpreter():
    assert python(CODE, TRITON_INTERPRET='1') == ['True'] * 27


SIZES = {dynamics.if_charge: 0, dynamics.lif_charge: 2, dynamics.lif_charge_whole: 2, dynamics.qif_charge: 4, dynamics.eif_charge: 4,
         dynamics.izhikevich_charge: 7, dynamics.cuba_charge: 2, dynamics._alif_charge: 4, dynamics._klif_charge: 4}


@pytest.mark.skipif(os.environ.get('TRITON_INTERPRET') == '1', reason='the interpreter compiles nothing')
@pytest.mark.parametrize('charge', SIZES, ids=lambda c: c.__name__)
def test_wide_loads_and_no_spills(charge):
    import triton.language as tl
    from snnbook.kernels.triton import _apart, _backward, _forward, _segments, assembly
    n, m = SIZES[charge], dynamics.equations.get(charge, dynamics.Equation()).states
    every, wide = tuple(range(m)), {'ld.global.v4.b32', 'ld.global.b32'}
    for arch, (learned, soft, many) in itertools.product((80, 90), [((), False, False), (range(n + 2), False, False), ((), False, True)]):
        learned, T = tuple(j for j in learned if j < n + 2 - soft), 64
        kinds = ''.join('p' if j in learned else 'a' if many else 's' for j in range(n + 2 - soft))
        start = ('a' if many else 's') * m
        there = tuple(f'c{j}' for j, k in enumerate(kinds) if k != 's') + tuple(f'start{i}' for i in every if many)
        K, M = _segments(charge, len(learned), T)
        back = _backward(charge, surrogate.ATan.gradient, kinds, soft, False, start, many, True, every if many else (), every if many else (), learned, M)
        made = assembly(back, arch, there, T=T, K=K, real=tl.float32, BLOCK=512)
        assert made['spills'] == 0 and set(made['loads']) <= wide and made['order'].startswith('L'), (arch, learned, soft, many, made)
        if not many: continue
        there_and = assembly(_forward(charge, kinds, soft, start, many, True), arch, there, T=T, U=4, L=_apart(charge), real=tl.float32, BLOCK=512)
        assert there_and['spills'] == 0 and there_and['loads'] == made['loads'] == ['ld.global.v4.b32']


def test_checkpoints_take_less_than_a_tenth():
    from snnbook.kernels.triton import _apart
    for charge in SIZES:
        states = dynamics.equations.get(charge, dynamics.Equation()).states
        for T in range(1, 400): assert states * max(0, -(-T // _apart(charge)) - 1) <= .1 * T

