"""What a user would write without this project: a plain Ray Tune + SFTTrainer script."""

from __future__ import annotations

import sys

from datasets import Dataset
from peft import LoraConfig
from ray import tune
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trainers.docstrings import rows
from trainers.tiny_model import DIRECTORY


class Tell(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics, **_):  # type: ignore[no-untyped-def]
        tune.report({"eval_loss": metrics["eval_loss"]})


def train(config):  # type: ignore[no-untyped-def]
    data = Dataset.from_list(rows()).train_test_split(test_size=300, seed=0)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(DIRECTORY),
        processing_class=AutoTokenizer.from_pretrained(DIRECTORY),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        callbacks=[Tell()],
        args=SFTConfig(
            output_dir="checkpoints",
            max_steps=100,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=32,
            max_length=128,
            eval_strategy="steps",
            eval_steps=13,
            save_steps=13,
            save_total_limit=2,
            bf16=False,
            use_cpu=True,
            activation_checkpointing=False,
            disable_tqdm=True,
            **config,
        ),
    )
    trainer.train()


if __name__ == "__main__":
    space = {
        "learning_rate": tune.grid_search([1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3]),
        "lr_scheduler_type": tune.grid_search(["constant_with_warmup", "cosine"]),
    }
    tuner = tune.Tuner(
        tune.with_resources(train, {"CPU": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(metric="eval_loss", mode="min"),
        run_config=tune.RunConfig(storage_path=sys.argv[1]),
    )
    print(tuner.fit().get_best_result().config)
