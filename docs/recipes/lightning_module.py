"""torchrun --nproc-per-node 2 lightning_module.py"""

import lightning
import torch

import crossent
import crossent.distributed


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5, 7)
        self.labels = []  # of all steps whose gradients are added up

    def training_step(self, batch, index):
        inputs, labels = batch
        self.labels.append(labels)
        return crossent.cross_entropy(self.layer(inputs), labels, reduction="sum")

    def on_before_optimizer_step(self, optimizer):  # and before gradients are clipped
        steps = self.trainer.accumulate_grad_batches  # the loss was divided by it
        count = crossent.distributed.denominator(self.labels, steps=steps)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad /= count
        self.labels.clear()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


torch.manual_seed(0)  # the same weights and data in every process
model = Classifier()
inputs, labels = torch.randn(20, 5), torch.randint(7, (20,))
labels[:12] = -100

batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=4, shuffle=True)
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_epochs=2,
    accumulate_grad_batches=2,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, batches)
