"Conversion of random networks: whatever is drawn, the network stays as it was and the error falls with time"
import copy, random
import pytest, torch
from torch import nn
from torch.nn import functional as F
from snnbook.ann2snn import Converter
from snnbook.functional import reset_net

torch.set_num_threads(1)
RELUS = [nn.ReLU(), nn.ReLU(inplace=True), lambda x: F.relu(x), torch.relu, lambda x: x.relu(), lambda x: F.relu(x, inplace=True), lambda x: x.relu_()]
POOLS = [nn.MaxPool2d(2), nn.AvgPool2d(2), lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2), nn.MaxPool2d(3, 2, 1),
         nn.AdaptiveAvgPool2d(4), lambda x: F.adaptive_max_pool2d(x, 4)]
FLATS = [lambda x: x.flatten(1), lambda x: torch.flatten(x, 1), lambda x: x.reshape(x.shape[0], -1), lambda x: x.contiguous().view(x.size(0), -1),
         lambda x: x.reshape(x.size(0), -1)]
FIXED = [lambda x: x * .5, lambda x: x + .1, lambda x: 1 - x, lambda x: F.pad(x, (1, 1, 1, 1)), lambda x: F.interpolate(x, scale_factor=2), nn.Dropout(.5), nn.Identity(),
         lambda x: torch.cat([x, x - x.mean((2, 3), keepdim=True)], 1), lambda x: torch.cat(x.chunk(2, -1)[::-1], -1), lambda x: x.transpose(2, 3)]


class Drawn(nn.Module):
    "Blocks drawn at random: plain, residual, dense, shared, pooled, functional"
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.draw, self.parts, self.plan = random.Random(seed), nn.ModuleList(), []
        self.relu, self.x = nn.ReLU(), torch.rand(12, self.draw.choice([1, 3]), 8, 8)
        x = self.x
        for _ in range(self.draw.randint(2, 5)):
            kind = self.draw.choice(['plain', 'residual', 'dense', 'shared', 'pool', 'fixed', 'deep'])
            if kind == 'pool' and x.shape[-1] < 4: continue
            self.plan.append(getattr(self, kind)(x.shape[1]))
            with torch.no_grad(): x = self.plan[-1](self, x.clone())
        self.flat, self.last, self.bn, self.head = self.draw.choice(FLATS), nn.Linear(x[0].numel(), 12), self.norm(nn.BatchNorm1d(12)), nn.Linear(12, 5)
        self.act = self.activation()

    def keep(self, m): # a module, as a step `(net, x)` that finds it in the network that is running
        self.parts.append(m)
        i = len(self.parts) - 1
        return lambda net, x: net.parts[i](x)
    def step(self, f): return self.keep(copy.deepcopy(f)) if isinstance(f, nn.Module) else lambda net, x: f(x)
    def norm(self, bn):
        for p in bn.running_var, bn.weight.data: p.uniform_(.5, 1.5)
        for p in bn.running_mean, bn.bias.data: p.uniform_(-.3, .3)
        return bn.eval()
    def activation(self): return self.draw.choice([lambda net, x: net.relu(x), self.step(self.draw.choice(RELUS))])
    def conv(self, i, o, kernel=3): return self.keep(nn.Conv2d(i, o, kernel, padding=kernel // 2, groups=i if i == o and self.draw.random() < .2 else 1))

    def plain(self, c):
        conv, bn, act = self.conv(c, 4), self.keep(self.norm(nn.BatchNorm2d(4)) if self.draw.random() < .6 else nn.Identity()), self.activation()
        return lambda net, x: act(net, bn(net, conv(net, x)))
    def residual(self, c):
        a, b, bn, act = self.conv(c, c), self.conv(c, c), self.keep(self.norm(nn.BatchNorm2d(c))), self.activation()
        return lambda net, x: act(net, x + bn(net, b(net, net.relu(a(net, x)))))
    def dense(self, c):
        a, act = self.conv(c, 2, 1), self.activation()
        return lambda net, x: torch.cat([x, act(net, a(net, x))], 1)
    def shared(self, c):
        a, act, two = self.conv(c, c), self.activation(), self.activation()
        return lambda net, x: two(net, a(net, act(net, a(net, x))))
    def deep(self, c):
        inner = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, padding=1), self.norm(nn.BatchNorm2d(4)), nn.ReLU())
        return self.keep(nn.Sequential(nn.Conv2d(c, 4, 1), nn.ReLU(), inner))
    def pool(self, c): return self.step(self.draw.choice(POOLS))
    def fixed(self, c): return self.step(self.draw.choice(FIXED))

    def forward(self, x):
        x = x * 1
        for step in self.plan: x = step(self, x)
        return self.head(self.act(self, self.bn(self.last(self.flat(x)))))


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.filterwarnings('ignore:.*never above zero')
def test_random_networks(seed):
    net = Drawn(seed).train(seed % 2 == 0)
    x, before, flags = net.x, copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    snn = Converter([x], mode=['max', '99.9%'][seed % 3 == 0], fuse_flag=seed % 5 > 0)(net)
    assert [m.training for m in net.modules()] == flags and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in snn.parameters()}
    error, total = {}, 0
    with torch.no_grad():
        want = net.eval()(x)
        reset_net(snn)
        for t in range(1, 97):
            total = total + snn(x)
            if t in (16, 96): error[t] = ((total / t - want).square().sum() / want.square().sum()).item()
    assert error[96] < 3e-3 and (error[96] < error[16] / 5 or error[16] < 1e-9), error
