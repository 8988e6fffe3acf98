"""From captions to paraphrases: prompts, engines, filters, and the loop that requests what is missing."""
