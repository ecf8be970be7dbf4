//! A line's request → what the engine runs: a job of one or more generation requests.
//!
//! Owns the order of precedence of parameters and the context limit. Formats are `batch/`'s, templates and tokens
//! `text/`'s.

mod dialogue;
mod keys;
mod prompts;
mod replies;

use std::sync::Arc;

pub(in crate::commands) use self::dialogue::Dialogue;
use self::dialogue::take_dialogue;
use self::keys::ChoiceKeys;
use self::prompts::{encode, min_tokens, recurs, text_bytes};
use self::replies::{pattern, preamble};

use crate::{
    batch::{AnswerOptions, Conversation, Prompt, Request, RequestError, RequestHead, RequestParams},
    deep::for_one_line,
    engine::{GenerationRequest, Processors, PromptPlan, Report, RequestId, SamplingParams, Score, TokenId},
    text::{
        AnswerText, ChatPrompt, Notice, PromptThinking, ReplyReader, ReplySettings, Span, TextModel,
        ThinkingSyntax, Tokenizer, system_end,
    },
};

/// What all requests of a run share.
#[derive(Debug)]
pub(in crate::commands) struct Preparer {
    pub end_ids: Arc<[TokenId]>,
    /// Flags over the model's generation_config.json.
    pub fallback: RequestParams,
    /// Longest answer where nobody has spoken.
    pub default_max_tokens: u32,
    pub max_context: usize,
    /// Where `--long-context` would serve more, how many.
    pub max_long_context: Option<usize>,
    pub vocab_size: usize,
    /// Whether the model resumes at checkpoints only, which are taken at every boundary.
    pub has_checkpoints: bool,
    pub reply: ReplySettings,
}

/// A line ready to be planned: what the engine runs for it, and what its record needs to know.
#[derive(Debug)]
pub(in crate::commands) struct PreparedJob {
    pub head: RequestHead,
    /// In the order of the record's choices: prompt by prompt, the answers to one side by side.
    pub requests: Vec<PreparedRequest>,
    pub format: AnswerFormat,
    /// The conversation, where it has turns behind the first.
    pub dialogue: Option<Box<Dialogue>>,
    /// What the chat template has passed over.
    pub notices: Vec<Notice>,
}

/// One choice of a job. Its id is given when it is planned.
#[derive(Debug)]
pub(in crate::commands) struct PreparedRequest {
    pub generation: GenerationRequest,
    /// The tiered pieces of the prompt.
    pub spans: Arc<[Span]>,
    /// Positions at which the prompt is cut whatever the other prompts are.
    pub boundaries: Arc<[usize]>,
    /// Whether the prompt ends within thinking.
    pub begins_thinking: bool,
}

/// How tokens become the choices of a record.
#[derive(Debug, Default)]
pub(in crate::commands) struct AnswerFormat {
    pub stops: Vec<String>,
    pub shown: AnswerText,
    /// End tokens that the request named itself.
    pub stop_token_ids: Vec<TokenId>,
    /// Choices that answer one prompt.
    pub num_choices: usize,
    /// Most probable tokens that are told with each token of the text.
    pub logprobs: Option<u32>,
    /// The same of the prompt's tokens.
    pub prompt_logprobs: Option<u32>,
    pub echo: bool,
    /// The prompts, where anything is told of them.
    pub prompts: Vec<PromptShown>,
    /// What takes the answers of a conversation apart.
    pub reader: Option<ReplyReader>,
    /// Whether control tokens show in texts that nobody has taken apart yet, and are no part of them.
    pub hides_control: bool,
}

/// A prompt as its choices show it.
#[derive(Debug)]
pub(in crate::commands) struct PromptShown {
    pub tokens: Vec<TokenId>,
    /// Empty where it is not repeated.
    pub text: String,
}

impl Preparer {
    /// Renders, tokenises and checks what a line asks for.
    pub(in crate::commands) fn prepare(
        &self,
        text: &Arc<TextModel>,
        request: Request,
    ) -> Result<PreparedJob, RequestError> {
        for_one_line(|| self.prepare_line(text, request))
    }

    fn prepare_line(&self, text: &Arc<TextModel>, request: Request) -> Result<PreparedJob, RequestError> {
        let Request { head, mut prompts, params, options } = request;
        let own_seed = params.seed;
        let params = params.or(&self.fallback);
        let chat = take_dialogue(&mut prompts);
        let processors = self.processors(text.tokenizer(), &params, &options)?;
        self.check_known("stop_token_ids", &options.stop_token_ids, false)?;
        let mut notices = Vec::new();
        let reader = self.reader(text, &head, &prompts, &options, &mut notices);
        let hides_control = !options.shows_special_tokens
            && reader.as_ref().is_some_and(|reader| text.has_control_marks(&reader.syntax));
        let mut job = PreparedJob {
            requests: Vec::with_capacity(prompts.len() * options.num_choices),
            format: AnswerFormat {
                stops: params.stop.clone().unwrap_or_default(),
                shown: AnswerText {
                    includes_stop: options.includes_stop,
                    shows_special_tokens: options.shows_special_tokens || hides_control,
                    min_tokens: processors.min_new_tokens,
                },
                stop_token_ids: options.stop_token_ids.clone(),
                num_choices: options.num_choices,
                logprobs: options.logprobs,
                prompt_logprobs: options.prompt_logprobs,
                echo: options.echo,
                prompts: Vec::new(),
                reader,
                hides_control,
            },
            dialogue: None,
            notices,
            head,
        };
        let num_turns = chat.as_ref().map_or(1, Conversation::num_turns);
        let thinking = job.format.reader.as_ref().and_then(|reader| reader.syntax.thinking);
        let wanted = Wanted { params, options, processors, thinking, own_seed };
        let options = &wanted.options;
        let is_list = prompts.len() > 1;
        for (position, prompt) in prompts.into_iter().enumerate() {
            let param = match &prompt {
                Prompt::Chat(_) => "messages".to_owned(),
                _ if is_list => format!("prompt[{position}]"),
                _ => "prompt".to_owned(),
            };
            let shown_text = match &prompt {
                Prompt::Text(text) if options.echo => Some(text.clone()),
                _ => None,
            };
            let first = self.first_choice(text, &param, prompt, &wanted, &mut job.notices);
            let mut first = first.map_err(|error| error.in_turn(1, num_turns))?;
            if num_turns > 1 {
                let recurs = &mut first.generation.answer_recurs;
                *recurs = std::mem::take(recurs).awaited();
            }
            if options.echo || options.prompt_logprobs.is_some() {
                let tokens = first.generation.prompt.clone();
                let text = match shown_text {
                    Some(text) => text,
                    None if options.echo => decoded(text, &param, &tokens)?,
                    None => String::new(),
                };
                job.format.prompts.push(PromptShown { tokens, text });
            }
            let keys = ChoiceKeys::new(&wanted, &job.head, position as u64, 0);
            for choice in 0..options.num_choices {
                let mut generation = first.generation.clone();
                generation.sampling.key = keys.of(choice as u64);
                // What is told of the prompt is the same for all of them.
                generation.score = generation.score.filter(|_| choice == 0 || generation.max_new_tokens == 0);
                let (spans, boundaries) = (Arc::clone(&first.spans), Arc::clone(&first.boundaries));
                let begins_thinking = first.begins_thinking;
                job.requests.push(PreparedRequest { generation, spans, boundaries, begins_thinking });
            }
        }
        job.dialogue = chat.map(|chat| Box::new(Dialogue { chat, wanted }));
        Ok(job)
    }

    /// Prepares one prompt, but for the key of its random numbers.
    fn first_choice(
        &self,
        text: &Arc<TextModel>,
        param: &str,
        prompt: Prompt,
        wanted: &Wanted,
        notices: &mut Vec<Notice>,
    ) -> Result<PreparedRequest, RequestError> {
        let Wanted { params, options, processors, .. } = wanted;
        let max_tokens = params.max_tokens.unwrap_or(self.default_max_tokens) as usize;
        // What is scored alone leaves the context whole.
        let max_prompt_tokens = self.max_context - usize::from(max_tokens > 0);
        let too_long = |num_tokens: String| {
            RequestError::bad_request(
                "context_length_exceeded",
                param,
                format!(
                    "the prompt has {num_tokens} tokens; the model's context of {} leaves no room for {}{}",
                    self.max_context,
                    if max_tokens > 0 { "an answer" } else { "them" },
                    match self.max_long_context {
                        Some(longer) => format!(" (--long-context serves {longer})"),
                        None => String::new(),
                    }
                ),
            )
        };
        let min_tokens = min_tokens(text, &prompt);
        if min_tokens > max_prompt_tokens {
            return Err(too_long(format!("at least {min_tokens}")));
        }
        let answer_recurs = recurs(text, &prompt);
        let is_text = !matches!(prompt, Prompt::Tokens(_));
        let is_chat = matches!(prompt, Prompt::Chat(_));
        let encoded =
            encode(text, (param, max_prompt_tokens), prompt, params.add_special_tokens, wanted.thinking)?;
        let ChatPrompt { tokens, spans, notices: passed_over, thinking } = encoded;
        notices.extend(passed_over);
        let num_tokens = tokens.len();
        if num_tokens == 0 {
            return Err(RequestError::invalid(param, "the prompt has no tokens"));
        }
        self.check_known(param, &tokens, is_text)?;
        if num_tokens > max_prompt_tokens {
            return Err(too_long(num_tokens.to_string()));
        }
        let score = score_of(options, num_tokens)?;
        let preamble = match is_chat {
            true => preamble(text, wanted, thinking)?,
            false => None,
        };
        let guide = pattern(text, options.constraint.as_ref(), preamble)?;
        let sampling = SamplingParams {
            temperature: params.temperature.unwrap_or(0.0),
            top_p: params.top_p.unwrap_or(1.0),
            top_k: params.top_k.unwrap_or(0),
            min_p: params.min_p.unwrap_or(0.0),
            key: 0,
        };
        Ok(PreparedRequest {
            generation: GenerationRequest {
                id: RequestId(0),
                prompt: tokens,
                max_new_tokens: max_tokens.min(self.max_context - num_tokens),
                end_ids: self.end_ids(params, options),
                sampling,
                processors: processors.clone(),
                guide,
                report: options.logprobs.map(|num_top| Report { num_top }),
                score,
                plan: PromptPlan::default(),
                answer_recurs,
            },
            boundaries: if self.has_checkpoints {
                spans.iter().map(|span| span.end).collect()
            } else {
                // Only what outlives the rest is worth a node of its own.
                system_end(&spans).into_iter().collect()
            },
            spans: Arc::from(spans),
            begins_thinking: thinking == PromptThinking::Open,
        })
    }

    /// What changes the logits before a token is chosen.
    fn processors(
        &self,
        tokenizer: &Tokenizer,
        params: &RequestParams,
        options: &AnswerOptions,
    ) -> Result<Processors, RequestError> {
        for (token, _) in &options.logit_bias {
            self.check_known(&format!("logit_bias.{token}"), &[*token], false)?;
        }
        let max_tokens = params.max_tokens.unwrap_or(self.default_max_tokens);
        Ok(Processors {
            repetition_penalty: params.repetition_penalty.unwrap_or(1.0),
            repetition_window: params.repetition_context_size.map(|size| size as usize),
            presence_penalty: params.presence_penalty.unwrap_or(0.0),
            frequency_penalty: params.frequency_penalty.unwrap_or(0.0),
            logit_bias: Arc::from(options.logit_bias.as_slice()),
            min_new_tokens: params.min_tokens.unwrap_or(0).min(max_tokens) as usize,
            bad_words: bad_words(tokenizer, &options.bad_words)?.into(),
            never: Arc::default(),
        })
    }

    /// The tokens that end an answer: the model's, unless they are ignored, and the request's.
    fn end_ids(&self, params: &RequestParams, options: &AnswerOptions) -> Arc<[TokenId]> {
        match (params.ignore_eos.unwrap_or(false), options.stop_token_ids.as_slice()) {
            (false, []) => Arc::clone(&self.end_ids),
            (false, more) => self.end_ids.iter().chain(more).copied().collect(),
            (true, only) => Arc::from(only),
        }
    }

    /// Checks that the model has these tokens.
    fn check_known(&self, param: &str, tokens: &[TokenId], is_text: bool) -> Result<(), RequestError> {
        let Some(token) = tokens.iter().find(|&&token| token as usize >= self.vocab_size) else {
            return Ok(());
        };
        let num_tokens = self.vocab_size;
        let reason = match is_text {
            true => format!(
                "the tokenizer gave token {token}, but the model knows {num_tokens} tokens; they do not belong together"
            ),
            false => format!("must hold token ids from 0 to {}, not {token}", num_tokens - 1),
        };
        Err(RequestError::invalid(param, reason))
    }
}

/// What all choices of a line want, in each of their turns.
#[derive(Debug)]
struct Wanted {
    params: RequestParams,
    options: AnswerOptions,
    processors: Processors,
    /// How the model writes its thinking, where that is parted from what is said.
    thinking: Option<&'static ThinkingSyntax>,
    /// Of the request itself.
    own_seed: Option<u64>,
}

/// Which tokens of a prompt are told of. Nothing comes before the first; what comes before the start may be
/// cached.
fn score_of(options: &AnswerOptions, num_tokens: usize) -> Result<Option<Score>, RequestError> {
    let start = options.logprob_start;
    if start > num_tokens {
        let reason = format!("must be from 0 to the prompt's {num_tokens} tokens, not {start}");
        return Err(RequestError::invalid("logprob_start_len", reason));
    }
    let from_echo = options.logprobs.filter(|_| options.echo);
    // Where nothing is asked of a prompt that is not continued, either, it is scored all the same: that is what
    // a request without new tokens is.
    let is_unasked = !options.tells_prompt_logprobs() && options.echo;
    let num_top = options.prompt_logprobs.max(from_echo).or(is_unasked.then_some(0));
    let from = if is_unasked { num_tokens } else { start.max(1).min(num_tokens) };
    Ok(num_top.map(|num_top| Score { from, num_top }))
}

/// The token sequences of texts that no answer may have, as vLLM makes them: with a space in front of them,
/// too, where that is one more way to write the same tokens.
fn bad_words(tokenizer: &Tokenizer, words: &[String]) -> Result<Vec<Vec<TokenId>>, RequestError> {
    let mut sequences = Vec::new();
    for (position, word) in words.iter().enumerate() {
        let encode = |text: &str| {
            let param = format!("bad_words[{position}]");
            tokenizer.encode(text, false).map_err(|error| RequestError::invalid(&param, error.to_string()))
        };
        let word = word.trim_start();
        let (bare, spaced) = (encode(word)?, encode(&format!(" {word}"))?);
        if spaced.len() == bare.len() && spaced.first() != bare.first() {
            sequences.push(spaced);
        }
        sequences.push(bare);
    }
    sequences.retain(|tokens| !tokens.is_empty());
    Ok(sequences)
}

/// A prompt of tokens as text.
fn decoded(text: &TextModel, param: &str, tokens: &[TokenId]) -> Result<String, RequestError> {
    let decoded = text.tokenizer().decode_with(tokens, true);
    decoded.map_err(|error| RequestError::bad_request("text_error", param, error.to_string()))
}
