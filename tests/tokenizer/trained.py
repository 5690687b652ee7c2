"""Tokenizers of the great families, trained here on a text of many scripts; built as their models' files have them."""

import json

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

TEXTS = (
    "The quick brown fox isn't here; it jumps over the lazy dog, doesn't it? Yes: 3.14 times!",
    "Ein Straßenbahnwagen fährt über die Brücke. Où est la bibliothèque ? ¿Dónde está la niña?",
    "人工智能正在改变世界。日本語の文章も含まれています。한국어 문장도 있습니다.",
    "שלום עולם, מה שלומך היום? مرحبا بالعالم، كيف حالك اليوم؟",
    "नमस्ते दुनिया। ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "e\u0301 a\u0308 o\u0302\u0323 Z\u0335\u0321 combining marks, and q\u0307 again",
    "🙂🙃 👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️ emoji, some of several code points",
    "def f(x):\n\treturn {'a': [1,  2], \"b\": x ** 2}  # spaces   and\ttabs\n\n",
)
"""Latin with punctuation, CJK, right-to-left, Devanagari and Thai, combining marks, emoji, code."""

_VOCAB_SIZE = 500
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level_bpe() -> Tokenizer:
    """As GPT-2, Llama-3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS[:2], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken("文", special=False)])
    return tokenizer


def sentence_piece_bpe() -> Tokenizer:
    """As Llama-2 and Mistral have it: what training has not seen becomes bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE, special_tokens=[*specials, *_BYTES], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS[:2], trainer)
    return _with_special(tokenizer, specials)


def sentence_piece_unigram() -> Tokenizer:
    """As Gemma-like and T5-like files have it: Metaspace, a Unigram model and byte tokens for the rest."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=_VOCAB_SIZE, special_tokens=[*specials, *_BYTES], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    vocab = [
        (piece, 0.0 if i < len(specials) + len(_BYTES) else -float(i) / 50)
        for piece, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    ]
    tokenizer.model = models.Unigram(vocab, 0, byte_fallback=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_special(tokenizer, specials)


def unigram_metaspace() -> Tokenizer:
    """As T5 and XLM-R have it: no bytes, unknown pieces are one token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=_VOCAB_SIZE, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT has it: the decoder joins words with spaces and takes them from before punctuation."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=_VOCAB_SIZE, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(["##", "n't", "do not"])
    return tokenizer


TRAINED = {
    "byte-level BPE": byte_level_bpe,
    "SentencePiece BPE": sentence_piece_bpe,
    "SentencePiece Unigram": sentence_piece_unigram,
    "Unigram": unigram_metaspace,
    "WordPiece": word_piece,
}


def _with_special(tokenizer: Tokenizer, specials: list[str]) -> Tokenizer:
    """Byte tokens are ordinary ones, as in the models' files: only the named tokens are special."""

    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [each for each in document["added_tokens"] if each["content"] in specials]
    return Tokenizer.from_str(json.dumps(document))
