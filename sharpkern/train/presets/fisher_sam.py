"""[F] Kim et al., Fisher SAM (ICML 2022): Tables 1 to 4.

[F] does not say how often it repeated a run, nor what stands after ±. Its γ is rho.
"""

from __future__ import annotations

from sharpkern import ASAM, SAM, FisherSAM
from sharpkern.train.presets.preset import Contender, Preset, Setting, Short, figures, plain

SPREAD = "±, not explained"
METHODS = ("sgd", "sam", "asam", "fishersam")

_NETWORKS = {
    "DenseNet-121": "",
    "ResNet-20": "resnet20",
    "ResNet-56": "resnet56",
    "VGG-19-BN": "vgg19-bn",
    "ResNeXt-29-32x4d": "",
    "WRN-28-2": "wrn28-2",
    "WRN-28-10": "wrn28-10",
    "PyramidNet-272": "",
}

# SGD, SAM, ASAM, FSAM on CIFAR-10; the same on CIFAR-100
_TABLE_1 = """
91.83 0.13 92.44 0.28 92.70 0.30 92.81 0.17 71.26 0.15 72.83 0.01 73.10 0.23 73.15 0.33
92.91 0.13 92.99 0.16 92.92 0.15 93.18 0.11 68.24 0.34 68.61 0.26 68.68 0.11 69.04 0.30
95.37 0.06 95.59 0.14 95.63 0.07 95.71 0.08 75.52 0.27 76.44 0.26 76.32 0.14 76.86 0.16
95.70 0.09 96.11 0.09 95.97 0.10 96.17 0.07 73.45 0.32 77.25 0.24 74.36 0.19 77.86 0.22
96.55 0.15 97.27 0.10 97.29 0.06 97.47 0.05 79.36 0.19 82.63 0.16 82.41 0.31 82.92 0.15
95.56 0.22 96.28 0.14 96.25 0.07 96.51 0.08 78.85 0.25 79.87 0.13 80.17 0.14 80.22 0.26
97.12 0.10 97.56 0.06 97.63 0.04 97.89 0.07 83.47 0.21 85.60 0.05 85.20 0.18 85.60 0.11
97.73 0.04 97.91 0.02 97.91 0.01 97.93 0.04 83.46 0.02 85.19 0.04 85.05 0.11 86.93 0.14
"""


def _table_1() -> tuple[Setting, ...]:
    settings = []
    for (row, network), line in zip(_NETWORKS.items(), _TABLE_1.strip().splitlines(), strict=True):
        numbers = figures(line)
        why_not = "" if network else f"sharpkern has no {row}"
        for data, column, printed in (("cifar10", "CIFAR-10", numbers[:4]), ("cifar100", "CIFAR-100", numbers[4:])):
            cell = dict(zip(METHODS, printed, strict=True))
            short = f"with the options of {column}"
            settings.append(Setting(data, network, row, column, cell, short, label_smoothing=0.1, why_not=why_not))
    return tuple(settings)


TABLE_1 = Preset(
    "fisher-sam-table-1",
    "[F] Table 1",
    "image classification by networks trained from scratch",
    (
        plain("sgd", "SGD", epoch_factor=2),
        Contender("sam", "SAM", SAM, {"rho": 0.05}, {"cifar100": {"rho": 0.1}}),
        Contender("asam", "ASAM", ASAM, {"rho": 0.5, "eta": 0.01}, {"cifar100": {"rho": 1.0, "eta": 0.1}}),
        Contender("fishersam", "FSAM", FisherSAM, {"rho": 0.1, "eta": 1.0}),
    ),
    _table_1(),
    SPREAD,
    (
        "SGD has twice the epochs ([F] 5.1).",
        "[F] does not give the size of Cutout: 16 pixels here.",
        "DenseNet-121, ResNeXt-29 and PyramidNet-272 are printed only.",
    ),
)

_EXTRA = Setting(
    "imagenet",
    "vit-b16",
    "Top-1",
    "",
    dict(zip(METHODS, figures("81.97 0.01 81.99 0.01 82.03 0.04 82.17 0.01"), strict=True)),
    "extra training",
    augmentation="basic",
    weight_decay=1e-4,
    why_not="sharpkern does not read ImageNet",
)

TABLE_2 = Preset(
    "fisher-sam-table-2",
    "[F] Table 2",
    "extra training of a network that has been trained on the same data",
    (
        plain("sgd", "SGD"),
        Contender("sam", "SAM", SAM, {"rho": 0.05}),
        Contender("asam", "ASAM", ASAM, {"rho": 1.0, "eta": 0.01}),
        Contender("fishersam", "FSAM", FisherSAM, {"rho": 0.5, "eta": 0.1}),
    ),
    (_EXTRA,),
    SPREAD,
    (
        "The paper's data is ImageNet, its network DeiT-B with published weights, its lr 1e-5: printed only.",
        "On the digits a small ViT is trained first, then 3 epochs more by each method with lr 0.01.",
        "[F] prints top-5 accuracy too: 95.61, 95.71, 95.83, 95.90; before the extra training 81.94 (top-1).",
        "[F] does not say the augmentation.",
    ),
    epochs=3,
    batch_size=256,
    lr=1e-5,
    digits=Short("tiny-vit", epochs=3, batch_size=64, lr=0.01),
    start="all",
    checkpoint="DeiT-B trained on ImageNet",
)

_TABLE_3 = (
    ("cifar100", "CIFAR", "87.97 0.12 87.99 0.09 87.97 0.08 88.39 0.13", ""),
    ("cars", "Cars", "92.85 0.31 93.29 0.01 93.28 0.02 93.42 0.01", "sharpkern does not read Stanford Cars"),
    ("flowers", "Flowers", "94.53 0.20 95.05 0.06 95.08 0.10 95.26 0.03", "sharpkern does not read Flowers"),
)

TABLE_3 = Preset(
    "fisher-sam-table-3",
    "[F] Table 3",
    "fine-tuning on other data than the network was trained on",
    (
        plain("sgd", "SGD"),
        Contender("sam", "SAM", SAM, {"rho": 0.05}),
        Contender("asam", "ASAM", ASAM, {"rho": 0.1, "eta": 0.01}),
        Contender("fishersam", "FSAM", FisherSAM, {"rho": 0.1, "eta": 1.0}),
        plain("adamw", "AdamW", base="AdamW"),
        Contender("fishersam-adamw", "FSAM + AdamW", FisherSAM, {"rho": 0.1, "eta": 1.0}, base="AdamW"),
    ),
    tuple(
        Setting(
            data,
            "vit-b16",
            row,
            "",
            dict(zip(METHODS, figures(printed), strict=True)),
            "transfer",
            augmentation="basic",
            weight_decay=0.05,
            why_not=why_not,
        )
        for data, row, printed, why_not in _TABLE_3
    ),
    SPREAD,
    (
        "AdamW and FSAM + AdamW are added here; the paper has SGD only.",
        "[F] does not say the augmentation, nor how images are resized: crops and flips, then bicubic to 224 × 224.",
        "On the digits a small ViT is trained on the classes 0 to 4 first, then on all ten with lr 0.005.",
        "Stanford Cars and Flowers are printed only.",
    ),
    batch_size=256,
    lr=5e-4,
    digits=Short("tiny-vit", epochs=10, batch_size=64, lr=0.005),
    start="half",
    checkpoint="ViT-B/16 trained on ImageNet",
)

_TABLE_4 = {
    0.2: "87.97 0.04 93.12 0.24 92.26 0.33 93.03 0.11",
    0.4: "83.60 0.59 90.54 0.19 88.47 0.06 90.95 0.17",
    0.6: "76.97 0.31 85.39 0.52 82.32 0.55 85.76 0.21",
    0.8: "66.32 0.27 74.31 1.02 70.56 0.27 74.66 0.67",
}

TABLE_4 = Preset(
    "fisher-sam-table-4",
    "[F] Table 4",
    "a share of the training labels flipped to another class",
    (
        plain("sgd", "SGD", epoch_factor=2),
        Contender("sam", "SAM", SAM, {"rho": 0.1}),
        Contender("asam", "ASAM", ASAM, {"rho": 0.5, "eta": 0.01}),
        Contender("fishersam", "FSAM", FisherSAM, {"rho": 0.1, "eta": 0.001}),
    ),
    tuple(
        Setting(
            "cifar10",
            "resnet32",
            f"{noise}",
            "",
            dict(zip(METHODS, figures(printed), strict=True)),
            f"{100 * noise:g} % flipped",
            noise=noise,
            label_smoothing=0.1,
        )
        for noise, printed in _TABLE_4.items()
    ),
    SPREAD,
    ("[F] 5.5 gives network, data, noise, rho and eta; the rest is as in Table 1.",),
)

PRESETS = (TABLE_1, TABLE_2, TABLE_3, TABLE_4)
