"""The embedded model as it lies in the repository: it loads, is small, and has read some Python."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools import tiny_model
from trainers.data.docstrings import rows

UNSEEN_CODE = """\
class Basket:
    def __init__(self, fruits=None):
        self.fruits = list(fruits or [])

    def add(self, fruit, count=1):
        if count < 0:
            raise ValueError("count must not be negative: %r" % count)
        for _ in range(count):
            self.fruits.append(fruit)
        return len(self.fruits)
"""


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model.DIRECTORY)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny_model.DIRECTORY)


def saved_files() -> list[Path]:
    return [path for path in tiny_model.DIRECTORY.rglob("*") if path.is_file()]


def test_it_is_small_enough_to_ship(model: Any) -> None:
    assert 1_000_000 < model.num_parameters() < 2_000_000
    assert sum(path.stat().st_size for path in saved_files()) < 8_000_000


def test_its_files_name_no_machine_and_no_date() -> None:
    for path in saved_files():
        if path.suffix == ".json" and path.name != "tokenizer.json":  # its vocabulary is any text
            text = path.read_text()
            assert not re.search(r"/(home|root|tmp|work|usr|Users)\b", text), path.name
            assert not re.search(r"\b20\d\d-\d\d", text), path.name


def test_its_special_tokens_are_told_apart(tokenizer: Any, model: Any) -> None:
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    special += tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert len(set(special)) == 5
    assert None not in special
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize("text", [UNSEEN_CODE, "\t# é ü 漢字 🙂\r\n\n\n  x  =  1  \n", " ", ""])
def test_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_prompt_has_the_same_tokens_with_and_without_its_completion(
    tokenizer: Any,
) -> None:
    for row in rows()[::20]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        assert tokenizer(row["prompt"] + row["completion"])["input_ids"][: len(prompt)] == prompt


def test_the_chat_template_marks_what_the_assistant_says(
    tokenizer: Any,
) -> None:
    chat = [{"role": "user", "content": "Ask?"}, {"role": "assistant", "content": "Answer."}]
    encoded = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [
        token
        for token, spoken in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        if spoken
    ]
    assert tokenizer.decode(said) == "Answer.<|im_end|>"
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nAsk?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False).startswith(prompt)


def test_it_has_learnt_to_read_python(tokenizer: Any, model: Any) -> None:
    tokens = tokenizer(UNSEEN_CODE, return_tensors="pt")["input_ids"]
    assert tiny_model.mean_loss(model, tokens) < math.log(tiny_model.VOCABULARY) / 2


def test_its_recipe_learns_and_repeats() -> None:
    texts = [UNSEEN_CODE * 300]
    losses = []
    for _ in range(2):
        torch.manual_seed(tiny_model.SEED)
        tokenizer = tiny_model.train_tokenizer(texts)
        model = tiny_model.new_model(tokenizer)
        blocks = tiny_model.packed(texts, tokenizer)[:1, :64]  # [1, T]
        untrained = tiny_model.mean_loss(model, blocks)
        tiny_model.pretrain(model, blocks, steps=4)
        losses.append(tiny_model.mean_loss(model, blocks))
    assert losses[0] == losses[1] < untrained


def test_the_time_limit_ends_the_training(tokenizer: Any) -> None:
    model = tiny_model.new_model(tokenizer)
    tiny_model.pretrain(model, torch.zeros(1, 8, dtype=torch.long), steps=10**9, limit_s=0.2)
    assert model.training


def test_text_is_packed_whole_with_an_end_behind_each_file(
    tokenizer: Any,
) -> None:
    blocks = tiny_model.packed([UNSEEN_CODE] * 9, tokenizer)
    assert blocks.shape[1] == tiny_model.BLOCK_TOKENS
    stream = blocks.flatten().tolist()
    file = [*tokenizer(UNSEEN_CODE)["input_ids"], tokenizer.eos_token_id]
    assert stream == (file * 9)[: len(stream)]
