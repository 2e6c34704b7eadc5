"""The graph that turns Khmer text into a served model. Each folder is a stage; data flows through them in the order
corpus, tokenizer, pretraining, instructions, finetuning, compression, evaluation, serving."""
