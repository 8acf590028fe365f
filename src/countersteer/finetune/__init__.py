"""Fine-tuning: examples of catching oneself, LoRA on exactly the wanted tokens, and the adapters that studies measure.

`data` makes examples, `train` makes adapters, `[finetune]` in a study does both and measures them (`recipe`).
ESR paper, experiment 4. Needs the extra: pip install 'countersteer[finetune]'.
"""
