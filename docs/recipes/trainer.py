"""torchrun --nproc-per-node 2 trainer.py"""

import tempfile

import torch
import transformers

from crossent.integrations.transformers import patch

torch.manual_seed(0)  # the same data in every process
config = transformers.LlamaConfig(
    vocab_size=67, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
)
tokens = torch.randint(3, 67, (8, 7))
labels = tokens.clone()
labels[:4, 2:] = -100
labels[4:6] = -100  # all of the second step of the first process

transformers.set_seed(0)
model = patch(transformers.LlamaForCausalLM(config))
arguments = transformers.TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    num_train_epochs=2,
    train_sampling_strategy="sequential",
    average_tokens_across_devices=True,  # num_items_in_batch is that of all processes
    learning_rate=0.5,
    optim="sgd",
    lr_scheduler_type="constant",
    max_grad_norm=0,
    use_cpu=True,
    report_to=[],
    save_strategy="no",
)
dataset = [{"input_ids": row, "labels": targets} for row, targets in zip(tokens, labels)]
transformers.Trainer(model, arguments, train_dataset=dataset).train()
