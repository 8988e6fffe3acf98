"""From captions to paraphrases: prompts, engines, filters, and the loop that asks for what is missing."""
