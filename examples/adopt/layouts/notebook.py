#!/usr/bin/env python
"""A notebook as `jupyter nbconvert --to script` writes it: two folds, each with its last state."""

# # Cross-validation

# In[1]:

import os
import time

import torch
from torch import nn

CFG = {"folds": 2, "epochs": 40, "seed": 42}
torch.manual_seed(CFG["seed"])


# In[2]:


x = torch.randn(512, 16)
y = (x.sum(1, keepdim=True) > 0).float()


# In[3]:


def train_fold(fold):
    model = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    start, best = 0, float("inf")
    last = f"fold{fold}_last.pth"
    if os.path.exists(last):
        state = torch.load(last)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, best = state["epoch"] + 1, state["best"]
    for epoch in range(start, CFG["epochs"]):
        for _ in range(8):
            rows = torch.randperm(512)[:64]
            loss = nn.functional.binary_cross_entropy_with_logits(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(0.05)
        print(f"fold {fold} epoch {epoch}/{CFG['epochs']} loss {loss.item():.4f}")
        if loss.item() < best:
            best = loss.item()
            torch.save(model.state_dict(), f"fold{fold}_best.pth")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "epoch": epoch, "best": best}, last)


# In[4]:


for fold in range(CFG["folds"]):
    train_fold(fold)


# In[5]:


print("done")
