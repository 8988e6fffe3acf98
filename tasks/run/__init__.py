"""What a run is, and how one stage of it is carried out."""
