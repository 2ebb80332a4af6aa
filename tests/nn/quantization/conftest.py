import pytest
import torch
from torch import nn

pytest.importorskip("torchao")


@pytest.fixture(scope="package")
def images():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="package")
def network(images):
    """Two convolutions with their norms, of which one has an eps of its own, and a linear layer; in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8, eps=0.1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.BatchNorm2d(8, momentum=0.3),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
        with torch.no_grad():
            for _ in range(3):
                network(2 * images + 1)
            network[1].weight.uniform_(0.5, 2)
            network[4].bias.normal_()
    return network


@pytest.fixture(autouse=True)
def untouched(network):
    """No function changes the given network, its mode or the generator."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    yield
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.fixture
def answer(network, images):
    flags = [(each, each.training) for each in network.modules()]
    with torch.no_grad():
        found = network.eval()(images)
    for each, training in flags:
        each.training = training
    return found


@pytest.fixture(scope="package")
def relative_error():
    return lambda found, expected: float((found - expected).detach().norm() / expected.detach().norm())
