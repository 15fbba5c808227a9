"""What a user would write without this project: a plain Ray Tune + SFTTrainer script.

python plain_ray_trl.py MODEL FOLDER_OF_JSONL RESULTS CPUS STEPS BATCH RATES
"""

import sys

import ray
from datasets import load_dataset
from peft import LoraConfig
from ray import tune
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

MODEL, ROWS, RESULTS, CPUS, STEPS, BATCH, RATES = sys.argv[1:]


class Report(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics, **_):  # type: ignore[no-untyped-def]
        tune.report({"eval_loss": metrics["eval_loss"], "step": state.global_step})


def train(config):  # type: ignore[no-untyped-def]
    files = {"train": f"{ROWS}/train.jsonl", "test": f"{ROWS}/test.jsonl"}
    data = load_dataset("json", data_files=files)
    args = SFTConfig(
        output_dir="checkpoints",
        max_steps=int(STEPS),
        max_length=128,
        per_device_train_batch_size=int(BATCH),
        per_device_eval_batch_size=32,
        warmup_steps=0.03,
        eval_strategy="steps",
        eval_steps=int(STEPS) // 8,
        save_steps=int(STEPS) // 8,
        save_total_limit=2,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        **config,
    )
    SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        callbacks=[Report()],
        args=args,
    ).train()


if __name__ == "__main__":
    ray.init(num_cpus=int(CPUS))
    space = {
        "learning_rate": tune.grid_search([float(rate) for rate in RATES.split(",")]),
        "lr_scheduler_type": tune.grid_search(
            ["constant", "constant_with_warmup", "linear", "cosine"]
        ),
    }
    tuner = tune.Tuner(
        tune.with_resources(train, {"CPU": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(metric="eval_loss", mode="min"),
        run_config=tune.RunConfig(storage_path=RESULTS),
    )
    print(tuner.fit().get_best_result().config)
