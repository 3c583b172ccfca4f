"""The Hugging Face Trainer, resumed from the checkpoint that get_last_checkpoint finds.

python hf_trainer.py
"""

import torch
from problem import (
    BATCH,
    CHECKPOINTS,
    EPOCHS,
    SAVE_EVERY,
    STEPS,
    Net,
    Noisy,
    after_step,
    finish,
    record_start,
)
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return {"loss": self.net.loss(x)}


class Steps(TrainerCallback):
    def on_train_begin(self, args, state, control, **_):
        record_start(state.global_step)

    def on_step_begin(self, args, state, control, **_):
        # By now the previous step has been saved, if it is one to save.
        if state.global_step:
            after_step(state.global_step)


set_seed(0)
torch.set_num_threads(1)
CHECKPOINTS.mkdir(exist_ok=True)
model = Model()
arguments = TrainingArguments(
    output_dir=CHECKPOINTS,
    num_train_epochs=EPOCHS,
    per_device_train_batch_size=BATCH,
    learning_rate=0.01,
    lr_scheduler_type="constant",
    save_steps=SAVE_EVERY,
    save_total_limit=3,
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=Noisy(),
    data_collator=lambda samples: {"x": torch.stack(samples)},
    callbacks=[Steps()],
)
trainer.train(resume_from_checkpoint=get_last_checkpoint(CHECKPOINTS))
if trainer.state.global_step == STEPS:
    finish(model.net)
