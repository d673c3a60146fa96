"""Small chat templates, each of a kind that is met in the wild, and words in which they speak."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (  # trims, and says which day it is
    "{{ bos_token }}{%- if not date_string is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|head|>system<|/head|>\n\nToday: ' + date_string + '<|eot|>' }}"
    "{% for m in messages %}"
    "{{- '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
GEMMA = (  # takes no system, calls the assistant a model, wants turns in turn
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<turn>' + role + '\n' + m['content'] | trim + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
QWEN = (  # thinks, and forgets what it thought in earlier turns
    "{% for m in messages %}"
    "{% set text = m['content'] %}"
    "{% if not loop.last %}{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m['role'] == 'assistant' and loop.last and '</think>' not in text %}"
    "{% set text = '<think>\n\n</think>\n\n' + text %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
MISTRAL = (  # a user's turn opens the assistant's; ends as a text does
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% else %}"
    "{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
WORDS = (  # ends a turn by an ordinary word
    "{% for m in messages %}{{ 'begin ' + m['role'] + ' ' + m['content'] + ' turn ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'begin assistant ' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama": LLAMA,
    "gemma": GEMMA,
    "qwen": QWEN,
    "mistral": MISTRAL,
    "words": WORDS,
}
ENDS = {
    "chatml": "<|im_end|>",
    "llama": "<|eot|>",
    "gemma": "</turn>",
    "qwen": "<|im_end|>",
    "mistral": "end",
    "words": "turn",
}
"""The word that ends a turn in each."""

_SPECIAL = (
    "<|im_start|> <|im_end|> <|head|> <|/head|> <|eot|> <turn> </turn> [INST] [/INST] "
    "<think> </think>"
)
_WORDS = (
    "pad end start unknown what is this high low and the cat sat user assistant system model "
    "begin turn Today: Jul Nov 26 30 2024 2026 day"
)


def speaking(name: str) -> Any:
    """A tokenizer of words with one of the templates."""
    made = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate(_WORDS.split())}, unk_token="unknown")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="pad", eos_token="end", bos_token="start",
        unk_token="unknown", additional_special_tokens=_SPECIAL.split(),
    )  # fmt: skip
    words.chat_template = TEMPLATES[name]
    return words
