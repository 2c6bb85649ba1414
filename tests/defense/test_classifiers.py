"""Classifiers: networks of the papers by their counts and by hand, zoos of other libraries, configs."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from weights import Touch, varied

from defense import CLASSIFIERS, ClassifierConfig, InvalidInput
from defense.classifiers import CNNA, DigitsCNN, FeatureNet, Normalised, ResNet4b, ResNetCIFAR, WideResNet
from defense.classifiers.deep_resnet import BottleneckBlock
from defense.classifiers.resnet_cifar import BasicBlock
from defense.torchvision_cpu import allow_torchvision_import

DEPTHS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}


class TestResNet:
    @pytest.mark.parametrize(("depth", "parameters"), DEPTHS.items())
    def test_the_parameter_count_is_that_of_the_paper(self, depth: int, parameters: int) -> None:
        # He et al., section 4.2: 6n+2 layers, 2n convolutions a group, batch norm after each, shortcuts free.
        n = (depth - 2) // 6
        widths = [3] + [16] * (2 * n + 1) + [32] * 2 * n + [64] * 2 * n
        convolutions = sum(9 * a * b for a, b in pairwise(widths))
        assert parameters == convolutions + 2 * sum(widths[1:]) + 64 * 10 + 10
        net = CLASSIFIERS.get(f"resnet{depth}").build()
        assert sum(p.numel() for p in net.parameters()) == parameters
        layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth

    def test_a_shortcut_that_changes_shape_takes_every_second_pixel_and_pads_channels_with_zeros(self) -> None:
        block = BasicBlock(2, 4, 2).eval()
        nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
        x = torch.arange(32.0).view(1, 2, 4, 4)
        zero = [[0.0, 0.0], [0.0, 0.0]]
        expected = torch.tensor([[zero, [[0.0, 2.0], [8.0, 10.0]], [[16.0, 18.0], [24.0, 26.0]], zero]])
        torch.testing.assert_close(block(x), expected)

    def test_a_shortcut_that_keeps_the_shape_is_the_identity_before_the_relu(self) -> None:
        block = BasicBlock(1, 1, 1).eval()
        nn.init.zeros_(block.conv2.weight)
        nn.init.constant_(block.bn2.bias, -1.0)
        torch.testing.assert_close(block(torch.tensor([[[[0.5, 3.0]]]])), torch.tensor([[[[0.0, 2.0]]]]))


LATENT = {
    "cnn-a": (214_918, 100),
    "mobilenetv2": (2_236_682, 1280),
    "resnet18": (11_173_962, 512),
    "resnet50": (23_520_842, 2048),
    "resnet4b": (123_734, 100),
    "shufflenetv2": (1_263_854, 1024),
    "wrn28-10": (36_479_194, 640),
    "wrn70-16": (266_796_506, 1024),
    **{f"resnet{depth}": (parameters, 64) for depth, parameters in DEPTHS.items()},
    # Option B has two projections: 16 x 32 and 32 x 64 weights, and two batch norms.
    **{f"resnet{depth}-b": (parameters + 16 * 32 + 32 * 64 + 2 * 96, 64) for depth, parameters in DEPTHS.items()},
    **{f"digits-{way}": (94_442, 64) for way in ("cnn", "gaussian", "at", "at-alp", "trades", "trades-awp", "macer")},
}
# With 100 classes the last layer alone is larger.
LATENT |= {
    f"{name}-cifar100": (parameters + 90 * (features + 1), features)
    for name, (parameters, features) in LATENT.items()
    if name.startswith(("resnet", "wrn", "mobile", "shuffle")) and name != "resnet4b"
}


class TestArchitectures:
    def test_all_are_listed_here(self) -> None:
        assert set(CLASSIFIERS.names()) == set(LATENT)

    @pytest.mark.parametrize("name", [name for name in LATENT if not name.endswith("-cifar100")])
    def test_size_and_shapes(self, name: str) -> None:
        architecture, (parameters, features) = CLASSIFIERS.get(name), LATENT[name]
        with torch.device("meta"):  # shapes without memory: the largest has a gigabyte of weights
            net = architecture.build()
            x = torch.zeros(3, *architecture.image_shape)
        assert isinstance(net, FeatureNet)
        assert sum(p.numel() for p in net.parameters()) == parameters
        latent = net.latent(x)
        assert latent.shape == (3, features)
        assert net.classify(latent).shape == (3, architecture.classes)
        assert len(architecture.mean) == len(architecture.std) == architecture.image_shape[0]
        last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
        assert (last.in_features, last.out_features) == (features, architecture.classes)

    @pytest.mark.slow
    def test_with_100_classes_the_last_layer_alone_is_larger(self) -> None:
        names = [name for name in LATENT if name.endswith("-cifar100")]
        assert len(names) == 14
        for name in names:
            architecture = CLASSIFIERS.get(name)
            with torch.device("meta"):
                net, small = architecture.build(), CLASSIFIERS.get(name.removesuffix("-cifar100")).build()
            assert sum(p.numel() for p in net.parameters()) == LATENT[name][0], name
            assert architecture.classes == 100, name
            shapes, others = ({key: v.shape for key, v in n.state_dict().items()} for n in (net, small))
            assert shapes.keys() == others.keys(), name
            changed = {key: tuple(shape) for key, shape in shapes.items() if shape != others[key]}
            assert sorted(changed.values()) == [(100,), (100, LATENT[name][1])], name
            assert isinstance(net, FeatureNet)
            assert net.classify(torch.zeros(3, LATENT[name][1], device="meta")).shape == (3, 100), name

    @pytest.mark.parametrize(
        "name", [n for n in LATENT if not n.startswith(("wrn", "digits-a")) and not n.endswith("cifar100")]
    )
    def test_logits_are_the_last_layer_of_the_latent(self, name: str) -> None:
        architecture = CLASSIFIERS.get(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = architecture.build().eval()
            x = torch.rand(2, *architecture.image_shape)
        assert isinstance(net, FeatureNet)
        classifier = Normalised(net, architecture.mean, architecture.std)
        last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            assert torch.equal(last(classifier.latent(x)), classifier(x))
            assert torch.equal(net.classify(net.latent(x)), net(x))
            assert classifier(x).std() > 0

    def test_the_latent_is_that_of_the_normalised_image(self) -> None:
        net = DigitsCNN().eval()
        x = torch.rand(2, 1, 8, 8)
        assert torch.equal(Normalised(net, (0.5,), (0.25,)).latent(x), net.latent((x - 0.5) / 0.25))

    def test_a_network_without_latent_is_refused_when_asked(self) -> None:
        classifier = Normalised(nn.Flatten(), (0.0,), (1.0,))
        with pytest.raises(InvalidInput, match=r"network Flatten has no `latent`.* Give it a method"):
            classifier.latent(torch.zeros(1, 1, 8, 8))

    @pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2), (28, 10)])
    def test_a_wide_network_has_the_layers_of_the_paper(self, depth: int, width: int) -> None:
        with torch.device("meta"):
            net = WideResNet(depth, width)
        n = (depth - 4) // 6
        widths = [16 * width] * 2 * n + [32 * width] * 2 * n + [64 * width] * 2 * n
        convolutions = 9 * 3 * 16 + sum(9 * a * b for a, b in pairwise([16, *widths]))
        shortcuts = 512 * width * width * (1 + 4) + (16 * 16 * width if width > 1 else 0)
        # A batch norm before each 3x3 convolution but the first, and one at the end.
        norms = 2 * (16 + sum(widths[:-1]) + widths[-1])
        assert sum(p.numel() for p in net.parameters()) == convolutions + shortcuts + norms + 640 * width + 10
        threes = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert len(threes) == 6 * n + 1

    def test_a_wide_network_of_no_such_depth_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"6n \+ 4 layers, not 30"):
            WideResNet(30, 10)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["mobilenetv2", "shufflenetv2"])
    def test_torchvision_s_networks_keep_its_names_and_end_at_4x4(self, name: str) -> None:
        allow_torchvision_import()
        from torchvision import models

        original = models.mobilenet_v2 if name == "mobilenetv2" else models.shufflenet_v2_x1_0
        with torch.device("meta"):
            net, theirs = CLASSIFIERS.get(name).build(), original(num_classes=10)
            sizes: list[tuple[int, ...]] = []
            for module in net.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(lambda _, x, y: sizes.append(tuple(y.shape[2:])))
            net(torch.zeros(1, 3, 32, 32))
        shapes, expected = ({k: v.shape for k, v in n.state_dict().items()} for n in (net, theirs))
        assert shapes == expected
        assert (sizes[0], sizes[-1]) == ((32, 32), (4, 4))


class TestResNet50:
    def test_a_block_that_changes_shape_projects_and_strides_in_the_middle(self) -> None:
        block = BottleneckBlock(2, 1, 2).eval()
        assert [m.stride for m in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]
        nn.init.zeros_(block.conv3.weight)  # leaves the shortcut alone
        nn.init.ones_(block.shortcut[0].weight)
        x = torch.rand(1, 2, 4, 4)
        torch.testing.assert_close(
            block(x), x[:, :, ::2, ::2].sum(1, keepdim=True).expand(1, 4, 2, 2), atol=1e-4, rtol=1e-4
        )
        assert not list(BottleneckBlock(4, 1, 1).shortcut.children())

    def test_it_has_fifty_layers_and_no_pooling_in_the_stem(self) -> None:
        with torch.device("meta"):
            net = CLASSIFIERS.get("resnet50").build()
            sizes: list[int] = []
            for module in net.modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                    module.register_forward_hook(lambda _, x, y: sizes.append(y.shape[2]))
            net(torch.zeros(1, 3, 32, 32))
        assert sizes == [32] * 4 + [16] * 4 + [8] * 6 + [4] * 3
        projections = [name for name, _ in net.named_modules() if name.endswith("shortcut.0")]
        layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert (len(projections), len(layers) - len(projections)) == (4, 50)


class TestOptionB:
    @pytest.mark.slow
    def test_a_checkpoint_in_the_names_of_the_hub_loads(self, tmp_path: Path) -> None:
        net = varied(ResNetCIFAR(3, projected=True))
        state = {key.replace("linear.", "fc."): value for key, value in net.state_dict().items()}
        assert {"fc.weight", "layer2.0.downsample.0.weight", "layer3.0.downsample.1.running_mean"} <= state.keys()
        assert not [key for key in state if "layer1" in key and "downsample" in key]
        torch.save(state, tmp_path / "cifar10_resnet20.pt")
        config = ClassifierConfig(classifier="resnet20-b", weights="cifar10_resnet20.pt").resolved(tmp_path)
        x = torch.rand(2, 3, 32, 32)
        mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
        expected = net((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
        torch.testing.assert_close(config.build()(x), expected)
        with pytest.raises(
            InvalidInput,
            match=r"missing in the file: linear\.w.*not in the network: layer2\.0\.down.* The file fits 'resnet20-b'",
        ):
            ClassifierConfig(classifier="resnet20", weights="cifar10_resnet20.pt").resolved(tmp_path).build()

    def test_a_projected_shortcut_is_a_strided_1x1_convolution_with_batch_norm(self) -> None:
        block = BasicBlock(2, 4, 2, projected=True).eval()
        nn.init.zeros_(block.conv2.weight)
        assert block.downsample is not None
        nn.init.constant_(block.downsample[0].weight, 0.5)
        nn.init.constant_(block.downsample[1].bias, 1.0)
        x = torch.rand(1, 2, 4, 4)
        expected = (x[:, :, ::2, ::2].sum(1, keepdim=True) * 0.5 + 1).expand(1, 4, 2, 2)
        torch.testing.assert_close(block(x), expected, atol=1e-4, rtol=1e-4)


class TestZoos:
    """Names of other packages; their networks are real, their weights random."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "features", "side", "mean"),
        [
            ("timm:resnet18?classes=30&size=64", 512, 64, 0.485),
            ("timm:mobilenetv2_100?classes=30&size=64", 1280, 64, 0.485),
            ("timm:vit_tiny_patch16_224?classes=30", 192, 224, 0.5),
            ("torchvision:shufflenet_v2_x1_0?classes=30&size=64", 1024, 64, 0.485),
            ("torchvision:mobilenet_v2?classes=30&size=64", 1280, 64, 0.485),
        ],
    )
    def test_a_checkpoint_in_the_package_s_names_gives_the_package_s_logits(
        self, name: str, features: int, side: int, mean: float, tmp_path: Path
    ) -> None:
        architecture = CLASSIFIERS.get(name)
        assert (architecture.image_shape, architecture.classes) == ((3, side, side), 30)
        assert architecture.mean[0] == mean
        net = varied(original(name, classes=30))
        torch.save(net.state_dict(), tmp_path / "weights.pth")
        config = ClassifierConfig(classifier=name, weights="weights.pth").resolved(tmp_path)
        classifier = config.build()
        x = torch.rand(2, 3, side, side)
        normalised = (x - torch.tensor(config.mean).view(1, 3, 1, 1)) / torch.tensor(config.std).view(1, 3, 1, 1)
        with torch.no_grad():
            expected = net(normalised)
            assert expected.std() > 0
            torch.testing.assert_close(classifier(x), expected)
            assert isinstance(classifier, Normalised) and isinstance(classifier.net, FeatureNet)
            latent = classifier.latent(x)
            assert latent.shape == (2, features)
            torch.testing.assert_close(classifier.net.classify(latent), expected)
        assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())

    def test_the_paper_s_inception_resnet_takes_299_pixels_and_its_own_normalisation(self) -> None:
        found = CLASSIFIERS.get("timm:inception_resnet_v2?classes=30")
        assert (found.image_shape, found.classes, found.mean, found.std) == (
            *((3, 299, 299), 30),
            *((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        )

    def test_a_network_with_two_heads_is_left_whole(self, tmp_path: Path) -> None:
        net = CLASSIFIERS.get("timm:deit_tiny_distilled_patch16_224?classes=3").build().eval()
        assert not isinstance(net, FeatureNet) and net(torch.zeros(1, 3, 224, 224)).shape == (1, 3)

    @pytest.mark.slow
    def test_weights_of_another_network_are_refused(self, tmp_path: Path) -> None:
        torch.save(original("timm:resnet18", classes=5).state_dict(), tmp_path / "five.pth")
        config = ClassifierConfig(classifier="timm:resnet18?classes=30", weights="five.pth").resolved(tmp_path)
        with pytest.raises(
            InvalidInput, match=r"of another shape: fc\.weight is \[5, 512\] in the file and \[30, 512\] in the n"
        ):
            config.build()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("timm:resnet1", r"timm .* has no model 'resnet1'; did you mean 'resnet18'\?$"),
            ("torchvision:resnt50", r"torchvision has no classifier 'resnt50'; did you mean 'resnet50'\?$"),
            ("timm:resnet18?clases=3", r"unknown option 'clases'; did you mean 'classes'\?"),
            ("timm:resnet18?classes=0", r"option classes = '0' is not a whole number above 0"),
            ("torchvision:resnet18?30", r"options '30' are not KEY=VALUE"),
            ("robustbench:Standrad", r"has no network 'Standrad' for cifar10, Linf; did you mean 'Standard'\?"),
            (
                "robustbench:Standard?dataset=mnist",
                r"has no dataset 'mnist'; Valid names: cifar10, cifar100, im",
            ),
            ("robustbench:Standard?threat=linf", r"has no threat 'linf'; did you mean 'Linf'\?"),
            ("robustbench:Chen2020Adversarial", r"are not one file of its own but 3"),
            ("timm:resnet18", r"needs `weights`.* hub repository timm/resnet18\.a1_in1k; puregrid never fetches"),
            ("torchvision:resnet18", r"needs `weights`.* https://download\.pytorch\.org/models/resnet18-"),
            ("robustbench:Carmon2019Unlabeled", r"needs `weights`.* https://drive\.google\.com/uc\?id=15tUx-gkZMYx"),
        ],
    )
    def test_what_is_missing_is_reported_with_the_way_to_it(self, name: str, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            ClassifierConfig(classifier=name).resolved(Path())

    @pytest.mark.parametrize(("name", "module"), [("timm:resnet18", "timm"), ("robustbench:Standard", "robustbench")])
    def test_an_absent_package_is_named_with_its_extra(
        self, name: str, module: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for loaded in [key for key in sys.modules if key.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, module, None)
        for family in CLASSIFIERS._families.values():
            family.cache_clear()  # type: ignore[attr-defined]
        with pytest.raises(InvalidInput, match=rf"pip install 'puregrid\[{module}\]'"):
            CLASSIFIERS.get(name)


class TestRobustBench:
    @pytest.mark.slow
    def test_a_checkpoint_gives_the_package_s_logits_without_any_download(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = "robustbench:Sehwag2021Proxy_R18"
        architecture = CLASSIFIERS.get(name)
        import robustbench.utils

        asked: list[object] = []
        for download in ("download_gdrive", "download_gdrive_new"):  # releases of one number differ in that
            monkeypatch.setattr(robustbench.utils, download, lambda *given: asked.append(given), raising=False)
        net = varied(architecture.build())
        torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "mine.pt")
        classifier = ClassifierConfig(classifier=name, weights="mine.pt").resolved(tmp_path).build()
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(classifier(x), net(x)) and net(x).std() > 0
        assert asked == [] and not any(p.requires_grad for p in classifier.parameters())
        assert "autoattack" not in sys.modules  # only lent to the package's import

        torch.save(ResNetCIFAR(3).state_dict(), tmp_path / "other.pt")
        with pytest.raises(InvalidInput, match=r"other\.pt' are not those of RobustBench's Sehwag2021Proxy_R18"):
            ClassifierConfig(classifier=name, weights="other.pt").resolved(tmp_path).build()
        mark = tmp_path / "ran"
        torch.save({"state_dict": {"conv1.weight": Touch(mark)}}, tmp_path / "evil.pt")
        with pytest.raises(InvalidInput, match="which only code can rebuild"):
            ClassifierConfig(classifier=name, weights="evil.pt").resolved(tmp_path).build()
        assert not mark.exists()


def original(name: str, classes: int) -> nn.Module:
    """The package's own network of a name."""
    allow_torchvision_import()
    package, _, rest = name.partition(":")
    rest = rest.partition("?")[0]
    if package == "timm":
        import timm

        net: nn.Module = timm.create_model(rest, pretrained=False, num_classes=classes)
        return net
    from torchvision import models

    built: nn.Module = models.get_model(rest, weights=None, num_classes=classes)
    return built


def test_the_small_robust_networks_by_hand() -> None:
    # A convolution that copies its centre, so that strides and shortcuts show.
    net = CNNA().eval()
    assert [type(m).__name__ for m in net] == [
        "Conv2d",
        "ReLU",
        "Conv2d",
        "ReLU",
        "Flatten",
        "Linear",
        "ReLU",
        "Linear",
    ]
    block = ResNet4b().layer1[0].eval()
    for tensor in block.parameters():
        nn.init.zeros_(tensor)
    nn.init.constant_(block.conv2.bias, -1.0)
    nn.init.ones_(block.shortcut[0].weight)
    x = torch.rand(1, 16, 4, 4)
    expected = (x[:, :, ::2, ::2].sum(1, keepdim=True) - 1).relu().expand(1, 32, 2, 2)
    torch.testing.assert_close(block(x), expected)


class TestConfig:
    def test_normalisation_is_per_channel(self) -> None:
        classifier = Normalised(nn.Flatten(), mean=(0.5, 0.25), std=(0.25, 0.5))
        x = torch.tensor([[[[0.75]], [[0.5]]], [[[0.0]], [[0.25]]]])
        torch.testing.assert_close(classifier(x), torch.tensor([[1.0, 0.5], [-2.0, 0.0]]))

    def test_resolving_says_the_weights_and_the_normalisation(self) -> None:
        resolved = ClassifierConfig(classifier="digits-cnn", name="small").resolved(Path())
        assert (resolved.mean, resolved.std, resolved.label()) == ((0.3,), (0.4,), "small")
        assert resolved.resolved(Path("/")) == resolved
        assert resolved.id == ClassifierConfig(classifier="digits-cnn").resolved(Path()).id
        other = ClassifierConfig(classifier="digits-cnn", mean=(0.0,), std=(1.0,)).resolved(Path())
        assert other.id != resolved.id

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (ClassifierConfig(classifier="resnet-20"), r"unknown classifier 'resnet-20'; did you mean 'resnet20'\?"),
            (ClassifierConfig(classifier="resnet20"), "'resnet20' needs `weights`"),
            (ClassifierConfig(classifier="resnet20", weights="none.th"), r"none\.th' cannot be read \(No such file"),
            (ClassifierConfig(classifier="digits-cnn", sha256="deadbeef"), "has sha256 [0-9a-f]{64}, not deadbeef"),
            (ClassifierConfig(classifier="digits-cnn", mean=(0.1, 0.2)), "takes images of 1 channels"),
            (ClassifierConfig(classifier="digits-cnn", std=(0.0,)), "the latter above 0"),
        ],
    )
    def test_a_classifier_that_cannot_be_built_is_refused(self, config: ClassifierConfig, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            config.resolved(Path())

    def test_building_before_resolving_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="resolve the config before building"):
            ClassifierConfig(classifier="digits-cnn").build()
