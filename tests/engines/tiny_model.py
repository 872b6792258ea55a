"""`python tiny_model.py DIRECTORY`, with an engine's own interpreter: a Llama of half a million parameters, made on the spot.

Tokenizer (2,048 byte-level pairs, learnt from the standard library) and configuration; random weights too where torch is there. Nothing
is downloaded and nothing binary has to be kept.
"""

import importlib.util
import os
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>'+m['role']+'\n'+m['content']+'<|im_end|>'+'\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)


def main(directory: str) -> None:
    """Write the model."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    learnt.train(sorted(str(path) for path in Path(os.__file__).parent.glob("*.py"))[:60], trainer)
    end, start, stop = SPECIAL
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learnt, bos_token=start, eos_token=stop, pad_token=end, unk_token=end)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=32768, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=True, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(directory)
    if importlib.util.find_spec("torch") is not None:
        import torch
        from transformers import LlamaForCausalLM

        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


if __name__ == "__main__":
    main(sys.argv[1])
