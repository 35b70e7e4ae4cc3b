"""What User-LLM saves over a text prompt, measured on this device (paper 4.3.1 and 4.4, tables 3 and 6).

programs.py   what is compared: prefill, decoding and training of each approach, timed in turns
report.py     the tables, with the paper's figures beside ours
"""
