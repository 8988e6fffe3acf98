"""The commands of `paraclip`, one file each. Nothing heavy is imported before a command needs it."""
