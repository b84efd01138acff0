"Monitors: the records are SpikingJelly's, where it is installed"
import copy, pickle
import pytest, torch
from torch import nn
from snnbook import functional, monitor
from snnbook.neuron import IFNode

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.sn1, self.fc2, self.sn2 = nn.Linear(8, 4), IFNode(), nn.Linear(4, 2), IFNode()
    def forward(self, x): return self.sn2(self.fc2(self.sn1(self.fc1(x))))

MAKE = {'OutputMonitor': lambda m, net: m.OutputMonitor(net, instance=IFNode), 'InputMonitor': lambda m, net: m.InputMonitor(net, instance=(IFNode, nn.Linear)),
        'AttributeMonitor': lambda m, net: m.AttributeMonitor('v', False, net, instance=IFNode), 'before': lambda m, net: m.AttributeMonitor('v', True, net, instance=IFNode),
        'GradInputMonitor': lambda m, net: m.GradInputMonitor(net, instance=IFNode), 'GradOutputMonitor': lambda m, net: m.GradOutputMonitor(net, instance=IFNode)}

@pytest.mark.parametrize('mode', 'sm')
@pytest.mark.parametrize('kind', MAKE)
def test_records_like_spikingjelly(kind, mode):
    peer = pytest.importorskip('spikingjelly.activation_based.monitor', exc_type=ImportError)
    torch.manual_seed(0)
    net, x = Net(), torch.rand(5, 3, 8, requires_grad=True)
    functional.set_step_mode(net, mode)
    ours, theirs = MAKE[kind](monitor, net), MAKE[kind](peer, net)
    y = net(x) if mode == 'm' else torch.stack([net(s) for s in x])
    y.sum().backward()
    assert ours.monitored_layers == theirs.monitored_layers and ours.name_records_index == theirs.name_records_index
    assert len(ours.records) == len(theirs.records) > 0
    for a, b in zip(ours.records, theirs.records): assert a == b if isinstance(a, float) else torch.equal(a, b)
    for name in ours.monitored_layers: assert len(ours[name]) == len(theirs[name])


@pytest.mark.parametrize('kind', MAKE)
def test_a_copy_keeps_the_records_and_watches_nothing(kind):
    torch.manual_seed(0)
    net, x = Net(), torch.rand(3, 8, requires_grad=True)
    m = MAKE[kind](monitor, net)
    net(x).square().sum().backward(create_graph=True)          # what is recorded hangs on a graph
    for twin in copy.deepcopy(m), pickle.loads(pickle.dumps(m)):
        assert twin.monitored_layers == m.monitored_layers and twin.name_records_index == m.name_records_index and twin.hooks == []
        for a, b in zip(twin.records, m.records, strict=True): assert a == b if isinstance(a, float) else torch.equal(a, b) and not a.requires_grad and a is not b
        twin.clear_recorded_data(); twin.remove_hooks(); del twin
    before = len(m.records)
    functional.reset_net(net); net(x).square().sum().backward()
    assert len(m.records) > before                             # the monitor itself watches on
