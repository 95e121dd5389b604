"""Networks that adapt a frozen model: maths (`functional`), modules (`lora`), names (`naming`), files (`formats`)."""
