"""What lanes are held against SFTTrainer with: every optimizer, schedule and accumulation, and what
models of each architecture need to be lanes."""

from __future__ import annotations

from itertools import product
from typing import Any

from support.packs import small
from support.tiny_archs import ARCHITECTURES, tiny

from sweeps.config.spec import TrainSpec
from trainers.sft.optimizers import available

STEPS = 32
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant_with_warmup": {"warmup_steps": 3},
    "linear": {"warmup_steps": 0.1},
    "cosine": {},
    "warmup_stable_decay": {"warmup_steps": 3, "lr_scheduler_kwargs": {"num_decay_steps": 0.25}},
}
RATES = {
    "sgd": 0.05,
    "adagrad": 5e-3,
    **dict.fromkeys(("rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit"), 3e-4),
    **dict.fromkeys(("lion_32bit", "lion_8bit"), 2e-4),
}
# The same on a CPU as one of the others: paged ones run unpaged, and some have two names.
TWINS = ("adamw_bnb_8bit", "paged_", "rmsprop_bnb_32bit")


def trial(optimizer: str, schedule: str, accumulation: int, **more: Any) -> TrainSpec:
    peft = {"r": 16, "lora_alpha": 16} | more.pop("peft", {})
    seed = len(optimizer) + 10 * len(schedule) + accumulation
    return small(
        optim=optimizer,
        lr_scheduler_type=schedule,
        gradient_accumulation_steps=accumulation,
        learning_rate=RATES.get(optimizer, 1e-3),
        weight_decay=0.01,
        peft=peft,
        seed=seed,
        evaluations=2,
        **{"per_device_train_batch_size": 2} | SCHEDULES[schedule] | more,
    )


def optimizers() -> list[str]:
    plain = [name for name in available("cpu") if not name.startswith(TWINS)]
    return [*plain, "paged_adamw_32bit"]


def matrix() -> list[TrainSpec]:
    """Each optimizer with each schedule, accumulations in turn; adamw_torch with all of both."""
    turns = [
        trial(optimizer, schedule, (1, 2, 4)[(row + column) % 3])
        for row, optimizer in enumerate(optimizers())
        for column, schedule in enumerate(SCHEDULES)
    ]
    every = [trial("adamw_torch", *each) for each in product(SCHEDULES, (1, 2, 4))]
    return list({repr(spec): spec for spec in [*turns, *every]}.values())


def unlike_lanes() -> list[TrainSpec]:
    """Lanes that differ in rank, dropout, micro-batch, accumulation, optimizer and schedule."""
    return [
        trial(
            optimizer,
            schedule,
            accumulation,
            peft={"r": rank, "lora_dropout": dropout, "lora_alpha": 2 * rank},
            per_device_train_batch_size=batch,
        )
        for optimizer, schedule, rank, dropout, batch, accumulation in [
            ("adamw_torch", "constant_with_warmup", 2, 0.0, 1, 4),
            ("sgd", "linear", 4, 0.1, 2, 1),
            ("adafactor", "cosine", 8, 0.3, 3, 2),
            ("lion_32bit", "warmup_stable_decay", 16, 0.05, 4, 1),
        ]
    ]


# Of the small base, matrices that bitsandbytes' 8-bit states take as whole blocks.
IN_BLOCKS = {"r": 128, "target_modules": ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}

NO_ROUTER_LOSS = {"router_aux_loss_coef": 0.0}
_ATTENTION = {"target_modules": ["q_proj", "v_proj"]}
_WITHOUT_OUTPUT = {"exclude_modules": ["out_proj"]}  # PEFT refuses it for Mamba
# What a model needs to be a lane beside the defaults: (peft, trainer).
NEEDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "falcon_h1"), (_WITHOUT_OUTPUT, {})),
    "nemotron_h": (_WITHOUT_OUTPUT, {}),
    **dict.fromkeys(
        ("mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "gpt_oss", "qwen3_next", "minimax"),
        (_ATTENTION, NO_ROUTER_LOSS),
    ),
    **dict.fromkeys(("glm4_moe", "ernie4_5_moe", "qwen3_5_moe_text"), (_ATTENTION, NO_ROUTER_LOSS)),
    "deepseek_v2": ({"target_modules": ["q_a_proj", "o_proj"]}, NO_ROUTER_LOSS),
    "deepseek_v3": ({"target_modules": ["q_a_proj", "o_proj"]}, NO_ROUTER_LOSS),
    **dict.fromkeys(("granitemoe", "doge"), ({}, NO_ROUTER_LOSS)),
}
# The layers of these drop activations of their own.
ALONE = ("gpt2", "opt", "opt_layerdrop", "seed_oss")
# SFTTrainer itself cannot train these, or PEFT: nothing to compare with.
UNTRAINABLE = ("phimoe", "llama4_text", "bitnet", "qwen3_next_dense")
FAMILIES = [name for name in ARCHITECTURES if name not in (*ALONE, *UNTRAINABLE)]


def of_family(name: str) -> list[TrainSpec]:
    """Two trials of unlike rates and dropouts on a tiny model of an architecture."""
    peft, trainer = NEEDS.get(name, ({}, {}))
    return [
        small(
            model=tiny(name),
            peft={**peft, "lora_dropout": dropout},
            learning_rate=rate,
            evaluations=1,
            **trainer,
        )
        for rate, dropout in ((1e-3, 0.0), (4e-3, 0.1))
    ]
