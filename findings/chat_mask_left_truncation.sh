#!/bin/bash
# transformers 5.23.0, `apply_chat_template(return_assistant_tokens_mask=True)` with truncation on the left: as soon as
# the first assistant turn loses its first token, no assistant turn of the dialog is in the mask any more.
#
# Left truncation keeps the end of a dialog, which is what one wants for its last answers. The mask is made turn by
# turn from positions of characters. A turn whose first character has no token is taken for one that lies past the end,
# as it would with truncation on the right, and the loop stops (`break`) instead of going to the next turn. Labels made
# from the mask are then all -100: such a dialog teaches nothing, and nothing is said. The end of a turn that is cut on
# the left is lost with it. (Issue 34494, about truncation on the right, is mended; none about the left was found.)
# What helps: tokenizing without truncation, then cutting ids and mask alike.
#
# A dialog of 48 tokens with the answers "yes" and "ok", the last tokens of it, and the text of those in the mask.
#
# Seen: "the last 34: 'yes.ok.', where it should be 'yes.ok.'", "the last 25: '', where it should be '.ok.'", "the last
# 16: '', where it should be 'ok.'".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 jinja2
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
import transformers
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

backend = Tokenizer(models.BPE({character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}, []))
backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", truncation_side="left")
tokenizer.chat_template = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|end|>' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|end|>' }}{% endif %}{% endfor %}"
)
dialog = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "no?"},
    {"role": "assistant", "content": "ok"},
]


def row(**settings):
    found = tokenizer.apply_chat_template(dialog, return_dict=True, return_assistant_tokens_mask=True, **settings)
    return found["input_ids"], found["assistant_masks"]


def masked(ids, mask):
    return tokenizer.decode([token for token, wanted in zip(ids, mask, strict=True) if wanted]).replace("<|end|>", ".")


ids, mask = row()
print(f"transformers {transformers.__version__}; {len(ids)} tokens, in the mask: {masked(ids, mask)!r}")
same = True
for kept in (len(ids), 35, 34, 25, 16):
    cut, cut_mask = row(truncation=True, max_length=kept)
    assert cut == ids[-kept:]
    found, expected = masked(cut, cut_mask), masked(cut, mask[-kept:])
    print(f"the last {kept}: {found!r}, where it should be {expected!r}")
    same = same and "ok." in expected and found == (expected if "yes" in expected else "")
raise SystemExit(0 if same else 1)
PYTHON
