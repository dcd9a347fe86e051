"""The twin-structured BERT in torch: what training changes and export turns into a bundle."""
