"""[G] Williams and Roberts, G-TRACER: Tables 1 to 3. It prints standard errors."""

from __future__ import annotations

from sharpkern import SAM, TRACER
from sharpkern.train.presets.preset import Contender, Preset, Setting, Short, figures, plain

SPREAD = "standard error"
METHODS = ("sgd", "sam", "tracer")

_TRACER = {"rho": 1e-3, "beta": 0.1, "delta": 0.1, "radius": 0.01}  # the defaults of sharpkern.TRACER

_CONTENDERS = (
    plain("sgd", "SGD"),
    Contender("sam", "SAM", SAM, {"rho": 0.05}),
    Contender("tracer", "SGD-TRACER", TRACER, _TRACER),
)

_OPEN = (
    "[G] does not give rho, beta, delta and radius of SGD-TRACER nor SAM's rho: sharpkern's defaults here (SAM 0.05).",
    "[G] does not give batch size and momentum: 128 and 0.9 here. No label smoothing.",
)


TABLE_1 = Preset(
    "g-tracer-table-1",
    "[G] Table 1",
    "half of the labels flipped, no augmentation, no weight decay",
    _CONTENDERS,
    (
        Setting(
            "cifar100",
            "resnet20",
            "",
            "No aug",
            dict(zip(METHODS, figures("17.5 2.41 34.63 1.85 47.55 1.51"), strict=True)),
            "50 % flipped, no aug, no weight decay",
            noise=0.5,
            augmentation="none",
            weight_decay=0.0,
        ),
    ),
    SPREAD,
    _OPEN,
    methods_across=False,
)

# name of the column, noise, augmentation, figures of SGD, SAM, SGD-TRACER
_TABLE_2 = (
    ("no aug", 0.0, "none", "51.43 0.41 58.98 0.52 63.47 0.32"),
    ("with aug", 0.0, "basic", "70.02 0.36 70.33 0.22 70.71 0.36"),
    ("50% noise & no aug", 0.5, "none", "21.96 0.36 49.89 0.32 51.62 0.18"),
)

TABLE_2 = Preset(
    "g-tracer-table-2",
    "[G] Table 2",
    "with and without augmentation and label noise",
    _CONTENDERS,
    tuple(
        Setting(
            "cifar100",
            "resnet20",
            "",
            column,
            dict(zip(METHODS, figures(printed), strict=True)),
            column,
            noise=noise,
            augmentation=augmentation,
        )
        for column, noise, augmentation, printed in _TABLE_2
    ),
    SPREAD,
    (*_OPEN, "[G] does not say which augmentation: crops and flips here."),
    methods_across=False,
)

# Adam, SAM, Adam-TRACER
_TABLE_3 = {
    "BOOLQ": "73.84 0.14 73.95 0.13 75.09 0.04",
    "WIC": "69.36 0.08 69.06 0.07 70.01 0.06",
    "RTE": "69.18 0.33 69.54 0.28 70.13 0.18",
}

TABLE_3 = Preset(
    "g-tracer-table-3",
    "[G] Table 3",
    "fine-tuning with Adam",
    (
        plain("adam", "Adam", base="Adam"),
        Contender("sam", "SAM", SAM, {"rho": 0.05}, base="Adam"),
        Contender("adamtracer", "Adam-TRACER", TRACER, _TRACER, base="Adam"),
    ),
    tuple(
        Setting(
            task.lower(),
            "",
            "",
            task,
            dict(zip(("adam", "sam", "adamtracer"), figures(printed), strict=True)),
            "transfer",
            augmentation="none",
            weight_decay=0.0,
            why_not=f"sharpkern does not read {task}, which is text",
        )
        for task, printed in _TABLE_3.items()
    ),
    SPREAD,
    (
        "The paper fine-tunes BERT base (uncased) on three tasks of SuperGLUE with lr 2e-5: printed only.",
        "On the digits a small ViT is trained on the classes 0 to 4 first, then 5 epochs on all ten with lr 0.001.",
        "[G] does not give the options of SAM and Adam-TRACER: sharpkern's defaults.",
    ),
    epochs=5,
    batch_size=32,
    lr=2e-5,
    seeds=20,
    methods_across=False,
    digits=Short("tiny-vit", epochs=5, batch_size=32, lr=1e-3),
    start="half",
    checkpoint="BERT base, uncased",
)

PRESETS = (TABLE_1, TABLE_2, TABLE_3)
