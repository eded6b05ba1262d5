"""From a model directory to artefacts for machines without torch; each is loaded again and compared."""
