"""What can be wrong in a scene: each family of drawings has one known physical error, its cause."""

CAUSES = {
    cause: {"family": family, "captioned": captioned, "description": description}
    for cause, family, captioned, description in (
        ("hand_fingers", "hand", True, "the hand has three, six or seven fingers"),
        ("face_features", "face", True, "an eye, the nose or the mouth is misplaced"),
        ("person_limbs", "person", True, "an arm or a leg too many or too few"),
        ("animal_legs", "animal", True, "the animal has two or six legs"),
        ("table_floating", "table", False, "an object hangs in the air above the table"),
        ("light_shadow", "light", True, "the shadow points towards the light"),
        ("glass_surface", "glass", False, "the liquid's surface tilts with the glass"),
        ("blocks_balance", "blocks", True, "the upper blocks would topple"),
        ("water_reflection", "water", True, "the reflection does not match"),
    )
}  # captioned: whether the captions that train the small CLIP tell of the error; two causes never
CAUSE_OF = {about["family"]: cause for cause, about in CAUSES.items()}
