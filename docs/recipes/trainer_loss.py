"""torchrun --nproc-per-node 2 trainer_loss.py"""

import tempfile

import torch
import transformers

import crossent


def loss(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits.flatten(0, 1)
    return crossent.cross_entropy(logits, labels.flatten(), label_smoothing=0.1, denominator=num_items_in_batch)


torch.manual_seed(0)  # the same data in every process
config = transformers.LlamaConfig(
    vocab_size=67, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=5,
    classifier_dropout=0.0,
)  # fmt: skip
tokens, labels = torch.randint(3, 67, (8, 7)), torch.randint(5, (8, 7))
labels[:4, 2:] = -100
labels[4:6] = -100  # all of the second step of the first process

transformers.set_seed(0)
model = transformers.LlamaForTokenClassification(config)
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
transformers.Trainer(model, arguments, train_dataset=dataset, compute_loss_func=loss).train()
