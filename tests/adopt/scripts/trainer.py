"""A Hugging Face Trainer script as many are: --resume_from_checkpoint, checkpoints in out/."""

import argparse
import time

import torch
import transformers
from killed_save import arm, die
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--resume_from_checkpoint")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--pause", type=float, default=0.0)
parser.add_argument("--kill-save", choices=["write", "between"], help="die in the second one")
args = parser.parse_args()


class Pause(TrainerCallback):
    def on_step_end(self, arguments, state, control, **_):
        time.sleep(args.pause)
        if state.global_step == 10 and args.kill_save == "write":
            arm(60_000)  # the weights have 40 kB, the optimizer's state twice that
        if state.global_step == 10 and args.kill_save == "between":
            Trainer._save_rng_state = lambda *_: die()


transformers.set_seed(0)
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2))
texts = torch.randint(0, 64, (64, 16), generator=torch.Generator().manual_seed(1))
trainer = Trainer(
    model,
    TrainingArguments(
        output_dir="out",
        max_steps=args.steps,
        per_device_train_batch_size=4,
        save_steps=5,
        learning_rate=0.01,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_total_limit=3,
    ),
    train_dataset=[{"input_ids": text, "labels": text} for text in texts],
    callbacks=[Pause()],
)
print("begins with", args.resume_from_checkpoint, flush=True)
trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
torch.save(model.state_dict(), "final.pt")
